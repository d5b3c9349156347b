"""To and from a PACS: C-STORE and STOW-RS out, a C-STORE listener in.

Needs the extra ``pacs``; nothing of it is imported before it is used. What a peer says of an object comes back as
numbers and words of the standard: no name, date, UID or path of a patient is in a message, a log or an id.
"""
