"""Sources: what files, APIs and databases have, landed as received and then read as text."""
