"""Undoing the harm of sleep: corrections and stencils, from unlabelled images."""
