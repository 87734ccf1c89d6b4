from cloudify import ctx

ctx.instance.runtime_properties['started'] = True
ctx.logger.info('%s is up' % ctx.instance.id)
