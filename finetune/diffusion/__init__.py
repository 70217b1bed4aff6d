"""The mathematics of diffusion, pure: noise schedules, targets, losses, and chance."""
