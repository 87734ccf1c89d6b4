from cloudify import ctx

ctx.instance.runtime_properties['url'] = 'postgresql://database/%s' % ctx.instance.runtime_properties['name']
