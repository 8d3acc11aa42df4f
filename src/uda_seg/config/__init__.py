"""Configuration: schema, composition and replay."""
