"""Networks: denoisers that return x0, discriminator heads, text encoder, VAE, average."""
