"""``port:``: programs that listen on this machine, each a carrier of the streams that are connections to it."""
