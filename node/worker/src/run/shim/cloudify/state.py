"""The inputs of the operation."""


class _Parameters(dict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name)


ctx_parameters = _Parameters()


class _Current(object):
    def get_ctx(self):
        from cloudify import ctx
        return ctx

    def get_parameters(self):
        return ctx_parameters


current_ctx = _Current()
