"""The words the recorder speaks: schemas.json and its codec. Imports nothing of ours."""
