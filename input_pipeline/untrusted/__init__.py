"""Files that nobody vouches for.

What is in one may be wrong or hostile: it is never run, and what reading it costs is capped.

archives     zip and tar, packed or unpacked, refused whole where a member would do harm
bounded      caps on numbers, bytes and memory, from defaults or the environment
unpickling   pickles from which only numbers, text and containers are built
text_lists   lines of official lists, and how a wrong one is named
"""
