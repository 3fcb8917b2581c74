"""The contract between training and serving: what a bundle is, and how bytes become views.

A leaf: the standard library, NumPy, Pillow and pydantic. Both `service` and `training` read it, so
preprocessing exists once.
"""
