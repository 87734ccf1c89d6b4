from cloudify import ctx

name = ctx.node.properties['name']
ctx.logger.info('creating database %s' % name)
ctx.instance.runtime_properties['name'] = name
ctx.instance.runtime_properties['tables'] = ['items', 'orders']
