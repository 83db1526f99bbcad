"""Noise schedules, parameterizations, times and solvers: plain functions of tensors."""
