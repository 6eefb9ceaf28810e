"""Diffusion: processes, schedules, samplers and the equations that they solve."""
