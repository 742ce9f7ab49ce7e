"""Prices, budgets and the ledger."""
