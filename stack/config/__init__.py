"""Recipes: the typed schema and how a YAML file becomes one."""
