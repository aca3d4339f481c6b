"""Evaluation: the test protocol, from test clips to tables of scores."""
