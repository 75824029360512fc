"""Evaluation tasks, one a file: questions become requests, their scores become a `Result`."""
