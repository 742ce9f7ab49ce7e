"""The testing kit: a scripted model, a stand-in agent and an example repository.

Shipped with the package because ``steadyhand demo`` uses it when there is no API key. Nothing in here reaches
beyond loopback or costs anything.
"""
