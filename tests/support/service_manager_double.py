"""A service manager in this process, which notes its notifications and keeps sockets."""


class ServiceManager:
    """Has the methods of :class:`relay.daemon.service_manager.Notifier`; :attr:`heard` has each call.

    :param watchdog: seconds.
    :param stores: the most sockets that it keeps; :attr:`kept` has them by name.
    """

    def __init__(self, watchdog=None, stores=0):
        self.watchdog = watchdog
        self.stores = stores
        self.heard = []
        self.kept = {}

    def __getattr__(self, name):
        return lambda *values: self.heard.append((name, *values))

    def names(self):
        """The names of the calls."""
        return [name for name, *_ in self.heard]

    def store(self, name, listening):
        """Keep a duplicate of a socket."""
        self.kept[name] = [*self.kept.get(name, ()), listening.dup()]  # at once: a test looks from another thread

    def forget(self, name):
        """Close the sockets of a name."""
        for one in self.kept.pop(name, ()):
            one.close()

    def passed(self):
        """Duplicates of the kept sockets, for the next program."""
        return {name: [one.dup() for one in sockets] for name, sockets in self.kept.items()}
