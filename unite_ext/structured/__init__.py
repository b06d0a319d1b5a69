"""Structured output: texts that follow a JSON schema, a regular expression or a grammar, through xgrammar."""
