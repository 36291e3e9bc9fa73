"""Chat templates that would never end, fill the memory or reach out of their sandbox: each must be refused."""

ROUNDS = "{% for i in range(10000) %}"
TWICE = "{% set ns = namespace(x='a') %}{% for i in range(60) %}"

BOMBS = {
    "loops in loops": ROUNDS + ROUNDS + "{% endfor %}{% endfor %}",
    "four loops in each other": "{% for i in range(300) %}" * 4 + "{% endfor %}" * 4,
    "a loop without end": "{% for i in range(10 * 10 * 1000000) %}{% endfor %}",
    "a recursive loop": "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "a text times a number": "{{ 'a' * 1000000000 }}",
    "a list times a number": "{{ [0] * 1000000000 }}",
    "a text times a number, folded by the compiler": "{{ ('a' * 300000000) | length }}",
    "a power": "{{ 9 ** 99999999 }}",
    "a tower of powers": "{{ 9**9**9**9 }}",
    "a number that is squared": "{% set ns = namespace(x=9) %}" + ROUNDS + "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "a text that is doubled by +": TWICE + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "a text that is doubled by ~": TWICE + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "a text that is doubled by a block": TWICE + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "a text that is doubled by a macro": TWICE
    + "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns.x = m(ns.x) %}{% endfor %}",
    "a text that is doubled by join": TWICE + "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "a list that is doubled by +": "{% set ns = namespace(x=[0]) %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "a list that is nested": TWICE + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "a dictionary that is nested": TWICE + "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
    "a dictionary that is nested by dict()": TWICE + "{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "namespaces that are nested": TWICE + "{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "namespaces in lists": TWICE + "{% set ns.x = [namespace(a=ns.x), namespace(a=ns.x)] %}{% endfor %}{{ ns.x }}",
    "a namespace that holds itself": "{% set ns = namespace() %}{% set ns.x = ns %}{{ [ns, ns] }}",
    "replace": TWICE + "{% set ns.x = ns.x.replace('a', 'aaaaaaaaaa') %}{% endfor %}",
    "the filter replace": TWICE + "{% set ns.x = ns.x | replace('a', 'aaaaaaaaaa') %}{% endfor %}",
    "replace with nothing between": "{{ ('a' * 100000).replace('', 'a' * 100000) }}",
    "join with a long text between": "{{ range(99999) | map('string') | join('x' * 99999) | length }}",
    "the method join": "{{ ('x' * 99999).join(range(99999) | map('string') | list) }}",
    "join of the same text": "{{ ([('x' * 999999)] * 100000) | join }}",
    "a width of str.format": "{{ '{:>999999999}'.format(1) }}",
    "a width of %": "{{ '%0999999999d' % 1 }}",
    "the filter format": "{{ '%0999999999d' | format(1) }}",
    "a width of center": "{{ 'a'.center(999999999) }}",
    "the filter center": "{{ 'a' | center(999999999) }}",
    "zeros": "{{ '1'.zfill(999999999) }}",
    "tabs": "{{ '\\t'.expandtabs(999999999) }}",
    "JSON that is indented": "{{ [1] | tojson(indent=999999999) }}",
    "a date of great width": "{{ strftime_now('%999999999d') }}",
    "a number that is rounded": "{{ 1 | round(999999999) }}",
    "bytes": "{{ 'a'.encode().zfill(999999999) }}",
    "output without end": ROUNDS + ROUNDS + "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "output within a block": "{% set x %}" + ROUNDS + "x" * 10_000 + "{% endfor %}{% endset %}",
    "long texts that are compared": "{% set a = 'x' * 900000 %}{% set b = a ~ 'y' %}"
    "{% for i in range(99999) %}{% if a ~ 'y' == b %}{% endif %}{% endfor %}",
    "long texts that are searched": "{% set a = 'x' * 900000 %}"
    + ROUNDS
    + "{% if 'xxxy' in a %}{% endif %}{% endfor %}",
    "long texts that are tested": "{% set a = 'x' * 900000 %}"
    + ROUNDS
    + "{% if a is eq('x' * 9) %}{% endif %}{% endfor %}",
    "long texts that are sliced": "{% set a = 'x' * 900000 %}" + ROUNDS + "{% set b = a[1:] %}{% endfor %}",
    "long texts that are stripped": "{% set a = ' ' * 900000 %}" + ROUNDS + "{% set b = a.strip() %}{% endfor %}",
    "long lists that are selected from": "{% set a = range(99999) | list %}"
    + ROUNDS
    + "{% set b = a | select('equalto', -1) | list %}{% endfor %}",
    "a range that is selected from": ROUNDS + "{% set b = range(60000) | select('equalto', -1) | list %}{% endfor %}",
    "a range that is mapped": ROUNDS
    + "{% set b = range(60000) | map(attribute='real') | select('equalto', -1) | list %}{% endfor %}",
    "a long text that is selected from": "{% set a = 'x' * 900000 %}"
    + ROUNDS
    + "{% set b = a | select('equalto', 'y') | list %}{% endfor %}",
    "a long text in which each element is sought": "{% set a = 'x' * 900000 %}{% set b = ('y ' * 1000).split(' ') %}"
    + ROUNDS
    + "{% set c = b | select('in', a) | list %}{% endfor %}",
    "a dictionary's items that are selected from": "{% set d = {"
    + ", ".join(f"'{n}': {n}" for n in range(1500))
    + "} %}"
    + ROUNDS
    + "{% set b = d.items() | select('equalto', -1) | list %}{% endfor %}",
    "a test within": "{% set a = 'x' * 900000 %}" + ROUNDS + "{% if 'xxxy' is in(a) %}{% endif %}{% endfor %}",
    "a constant that is written again and again": ROUNDS + "{{ '" + "x" * 30_000 + "' }}{% endfor %}",
    "a constant that is made by the compiler": ROUNDS
    + "{{ 'a' * 1000 | replace('a', '"
    + "b" * 1000
    + "') }}{% endfor %}",
    "a constant of a filter": ROUNDS + "{{ '" + "a" * 999 + "' | replace('a', '" + "b" * 999 + "') }}{% endfor %}",
    "a loop that calls itself": "{% set r = range(9999) %}{% for x in r recursive %}{{ loop(r) }}{% endfor %}",
    "a loop that calls itself once": "{% set r = range(65536) %}"
    "{% for x in r recursive %}{% if loop.depth0 %}{% else %}{{ loop(r) }}{% endif %}{% endfor %}",
    "a search from the end": "{{ ('x' * 900000).rfind('xy' ~ 'x' * 450000) }}",
    "a split from the end": "{{ ('x' * 900000).rsplit('xy' ~ 'x' * 450000) }}",
    "many characters that are stripped": "{{ ('x' * 900000).strip('a' * 900000 ~ 'x') }}",
    "many characters that are trimmed": "{{ ('x' * 900000) | trim('a' * 900000 ~ 'x') }}",
    "a test without anything besides": "{% set a = 'x' * 900000 %}"
    + ROUNDS
    + "{% if a is lower %}{% endif %}{% endfor %}",
    "a test of a filter's default": "{% set a = 'x' * 900000 %}"
    "{{ range(9999) | map(attribute='q', default=a) | select('lower') | list | length }}",
    "lines that are indented again and again": "{% set a = '\n' * 300000 %}"
    + ROUNDS
    + "{% set b = a | indent(1) %}{% endfor %}",
    "separators of JSON": "{{ range(1000) | list | tojson(separators=('x' * 900000, ':')) }}",
    "an indentation of JSON that is a text": "{{ range(1000) | list | tojson(indent=' ' * 900000 ~ '8') }}",
    "JSON that would show a disguise": "{{ messages[0].content | tojson(ensure_ascii=True) }}",
    "loops that Python does not compile": "{% for i in [1] %}" * 21 + "{% endfor %}" * 21,
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "two macros that call each other": "{% macro f() %}{{ g() }}{% endmacro %}"
    "{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": "{% macro f(n) %}"
    "{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "a call block that calls itself": "{% macro f() %}{% call f() %}{% endcall %}{% endmacro %}{{ f() }}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "brackets": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "nots": "{{ " + "not " * 5_000 + "1 }}",
    "minus signs": "{{ " + "-" * 30_000 + "1 }}",
    "a long sum": "{{ " + "1+" * 15_000 + "1 }}",
    "blocks": "{% if 1 %}" * 1400 + "{% endif %}" * 1400,
    "a template of great length": "a" * (1 << 20),
    "lorem ipsum": "{{ lipsum(n=99999) }}",
    "a cycler": "{{ cycler('a').next.__globals__ }}",
    "a joiner": "{{ joiner.__init__.__globals__ }}",
    "the classes of Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "the classes of Python, through a filter": "{{ '' | attr('__class__') }}",
    "the environment": "{{ self._TemplateReference__context.environment }}",
    "another template": "{% include '/etc/passwd' %}",
    "a module": "{% import 'os' as os %}",
    "a list that is changed": "{% set x = [] %}{{ x.append(x) }}",
    "a message that is changed": "{{ messages[0].update({'role': 'system'}) }}",
    "what is undefined": "{{ nothing.at.all }}",
    "a division by zero": "{{ 1 / 0 }}",
    "a wrong type": "{{ 1 + 'a' }}",
    "an unfinished block": "{% if 1 %}",
    "an unknown tag": "{% unknown %}",
    "an exception of its own": "{{ raise_exception('System role not supported') }}",
}
