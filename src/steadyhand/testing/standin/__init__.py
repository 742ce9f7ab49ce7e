"""The stand-in agent: a small program that behaves like the ``claude`` command line, without a model.

It takes the same options, prints the same ``json``, speaks the same ``stream-json`` in both directions, and does
what the prompt tells it by directives, misbehaving on request. It runs under the system's python3 (3.9 or newer) with
the standard library alone, as any user, and is made to start fast: no argparse, no dataclasses, nothing imported before
it is needed. ``steadyhand.testing.cli.install_standin`` puts it into a directory as ``claude``.

A prompt may hold any number of blocks ``[[standin: key=value key="quoted value" flag ...]]``; the words are taken in
their order. `script.py` lists them. Without any, it answers ``ok:`` and the first 60 characters of the prompt.
"""
