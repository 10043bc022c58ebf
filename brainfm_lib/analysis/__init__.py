"""What encoders see and say: spectra of reconstructions, covariance of latents."""
