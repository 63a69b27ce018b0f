//! Templates with the output of Python's Jinja 3.1 as configured by transformers. `None` if rendering fails.

use super::{ChatTemplate, Message, percent};
use serde_json::json;

/// Template and output.
#[rustfmt::skip]
const CASES: &[(&str, Option<&str>)] = &[
    ("{{ data | tojson }}", Some("{\"b\": [1, 2.5, null, true], \"a\": \"é<\\\"😀\\n\", \"z\": {\"y\": 1, \"x\": [], \"w\": {}}}")),
    ("{{ data | tojson(separators=(',', ':')) }}", Some("{\"b\":[1,2.5,null,true],\"a\":\"é<\\\"😀\\n\",\"z\":{\"y\":1,\"x\":[],\"w\":{}}}")),
    ("{{ data | tojson(separators=(',', ':'), sort_keys=true) }}", Some("{\"a\":\"é<\\\"😀\\n\",\"b\":[1,2.5,null,true],\"z\":{\"w\":{},\"x\":[],\"y\":1}}")),
    ("{{ data | tojson(sort_keys=true, indent=2) }}", Some("{\n  \"a\": \"é<\\\"😀\\n\",\n  \"b\": [\n    1,\n    2.5,\n    null,\n    true\n  ],\n  \"z\": {\n    \"w\": {},\n    \"x\": [],\n    \"y\": 1\n  }\n}")),
    ("{{ data | tojson(indent=4, separators=(' ; ', ' = ')) }}", Some("{\n    \"b\" = [\n        1 ; \n        2.5 ; \n        null ; \n        true\n    ] ; \n    \"a\" = \"é<\\\"😀\\n\" ; \n    \"z\" = {\n        \"y\" = 1 ; \n        \"x\" = [] ; \n        \"w\" = {}\n    }\n}")),
    ("{{ data | tojson(indent=0) }}", Some("{\n\"b\": [\n1,\n2.5,\nnull,\ntrue\n],\n\"a\": \"é<\\\"😀\\n\",\n\"z\": {\n\"y\": 1,\n\"x\": [],\n\"w\": {}\n}\n}")),
    ("{{ data | tojson(indent=-3) }}", Some("{\n\"b\": [\n1,\n2.5,\nnull,\ntrue\n],\n\"a\": \"é<\\\"😀\\n\",\n\"z\": {\n\"y\": 1,\n\"x\": [],\n\"w\": {}\n}\n}")),
    ("{{ data | tojson(indent='--') }}", Some("{\n--\"b\": [\n----1,\n----2.5,\n----null,\n----true\n--],\n--\"a\": \"é<\\\"😀\\n\",\n--\"z\": {\n----\"y\": 1,\n----\"x\": [],\n----\"w\": {}\n--}\n}")),
    ("{{ data | tojson(indent=none) }}", Some("{\"b\": [1, 2.5, null, true], \"a\": \"é<\\\"😀\\n\", \"z\": {\"y\": 1, \"x\": [], \"w\": {}}}")),
    ("{{ data | tojson(indent=true) }}", Some("{\n \"b\": [\n  1,\n  2.5,\n  null,\n  true\n ],\n \"a\": \"é<\\\"😀\\n\",\n \"z\": {\n  \"y\": 1,\n  \"x\": [],\n  \"w\": {}\n }\n}")),
    ("{{ data | tojson(indent=false) }}", Some("{\n\"b\": [\n1,\n2.5,\nnull,\ntrue\n],\n\"a\": \"é<\\\"😀\\n\",\n\"z\": {\n\"y\": 1,\n\"x\": [],\n\"w\": {}\n}\n}")),
    ("{{ data | tojson(true) }}", Some("{\"b\": [1, 2.5, null, true], \"a\": \"\\u00e9<\\\"\\ud83d\\ude00\\n\", \"z\": {\"y\": 1, \"x\": [], \"w\": {}}}")),
    ("{{ data | tojson(ensure_ascii=true) }}", Some("{\"b\": [1, 2.5, null, true], \"a\": \"\\u00e9<\\\"\\ud83d\\ude00\\n\", \"z\": {\"y\": 1, \"x\": [], \"w\": {}}}")),
    ("{{ data | tojson(false, 1) }}", Some("{\n \"b\": [\n  1,\n  2.5,\n  null,\n  true\n ],\n \"a\": \"é<\\\"😀\\n\",\n \"z\": {\n  \"y\": 1,\n  \"x\": [],\n  \"w\": {}\n }\n}")),
    ("{{ data | tojson(false, none, ['|', '~'], true) }}", Some("{\"a\"~\"é<\\\"😀\\n\"|\"b\"~[1|2.5|null|true]|\"z\"~{\"w\"~{}|\"x\"~[]|\"y\"~1}}")),
    ("{{ data | tojson(depth=3) }}", None),
    ("{{ data | tojson(separators=',') }}", None),
    ("{{ data | tojson(indent=2, separators=(',', ':'), ensure_ascii=true, sort_keys=true) }}", Some("{\n  \"a\":\"\\u00e9<\\\"\\ud83d\\ude00\\n\",\n  \"b\":[\n    1,\n    2.5,\n    null,\n    true\n  ],\n  \"z\":{\n    \"w\":{},\n    \"x\":[],\n    \"y\":1\n  }\n}")),
    ("{{ [tiny, huge, 1.0, -0.5, 1e16, 123456.789] | tojson }}", Some("[1e-07, 1e+22, 1.0, -0.5, 1e+16, 123456.789]")),
    ("{{ {1: 'a', none: 2, true: 3, 1.5: 4} | tojson }}", Some("{\"1\": 3, \"null\": 2, \"1.5\": 4}")),
    ("{{ (1, (2, 3)) | tojson }}", Some("[1, [2, 3]]")),
    ("{{ missing | tojson }}", None),
    ("{{ [missing] | tojson }}", None),
    ("{{ 'a\\\\x7f\\u2028/' | tojson }}", Some("\"a\\\\x7f\u{2028}/\"")),
    ("{{ tiny }} {{ huge }} {{ 1.0 }} {{ 1e16 }} {{ 0.0001 }} {{ 0.00001 }} {{ 123456789.123 }}", Some("1e-07 1e+22 1.0 1e+16 0.0001 1e-05 123456789.123")),
    ("{{ [none, true, 'a', \"it's\", 1.5, (1,), {'k': none}] }}", Some("[None, True, 'a', \"it's\", 1.5, (1,), {'k': None}]")),
    ("{{ [1, 2.5] | string ~ none ~ true }}", Some("[1, 2.5]NoneTrue")),
    ("{{ '%s' % 'a' }}", Some("a")),
    ("{{ '%s and %s' % ('a', 2) }}", Some("a and 2")),
    ("{{ '%s' % none }}|{{ '%s' % true }}|{{ '%s' % 1.0 }}|{{ '%s' % [1, 'b'] }}|{{ '%s' % {'k': 1} }}", Some("None|True|1.0|[1, 'b']|{'k': 1}")),
    ("{{ '%d|%i|%5d|%-5d|%05d|%+d|% d' % (3, 4.7, 5, 6, 7, 8, 9) }}", Some("3|4|    5|6    |00007|+8| 9")),
    ("{{ '%d' % -3.7 }}|{{ '%d' % true }}|{{ '%x|%X|%#x|%o|%#o' % (255, 255, 255, 8, 8) }}", Some("-3|1|ff|FF|0xff|10|0o10")),
    ("{{ '%f|%.2f|%8.3f|%-8.1f|%08.2f|%+.1f|%.0f|%#.0f' % (1.5, 2.345, 3.14159, 2.25, -1.5, 2, 2.5, 3) }}", Some("1.500000|2.35|   3.142|2.2     |-0001.50|+2.0|2|3.")),
    ("{{ '%e|%.2E|%g|%g|%g|%G|%#g|%.3g' % (12345.678, 0.00012, 0.0001, 0.00001, 1234567, 1e-10, 1.5, 1234.5) }}", Some("1.234568e+04|1.20E-04|0.0001|1e-05|1.23457e+06|1E-10|1.50000|1.23e+03")),
    ("{{ '%r|%r|%r|%a' % ('a', \"it's\", none, 'é') }}", Some("'a'|\"it's\"|None|'\\xe9'")),
    ("{{ '%5s|%-5s|%.2s|%5.1s|%05s' % ('a', 'b', 'cde', 'fgh', 'i') }}", Some("    a|b    |cd|    f|    i")),
    ("{{ '%c%c' % ('x', 65) }}", Some("xA")),
    ("{{ '100%% of %s' % 'x' }}", Some("100% of x")),
    ("{{ '%%' % () }}", Some("%")),
    ("{{ '%(a)s-%(b)03d' % {'a': 'x', 'b': 7} }}", Some("x-007")),
    ("{{ '%*d|%-*d|%.*f' % (5, 3, 4, 2, 1, 2.55) }}", Some("    3|2   |2.5")),
    ("{{ 'abc' % [] }}|{{ 'abc' % {} }}|{{ 'abc' % () }}", Some("abc|abc|abc")),
    ("{{ 'abc' % 1 }}", None),
    ("{{ '%s %s' % 'a' }}", None),
    ("{{ '%s' % ('a', 'b') }}", None),
    ("{{ '%d' % 'a' }}", None),
    ("{{ '%y' % 1 }}", None),
    ("{{ '%' % 1 }}", None),
    ("{{ '%s' % 'a' ~ 'b' }}", Some("ab")),
    ("{{ '%s' % 'a' + 'b' }}", Some("ab")),
    ("{{ 'x' ~ '%s' % 'a' | upper }}", Some("xA")),
    ("{{ ('x' ~ '%s') % 'a' | upper }}", Some("xA")),
    ("{{ '%s' % 7 % 2 }}", None),
    ("{{ '%s-%%s' % 7 % 2 }}", Some("7-2")),
    ("{{ 7 % 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 % 2 }} {{ -7.5 % 2 }} {{ 2 * 7 % 4 * 3 }} {{ '%s' % (7 % 4) }}", Some("1 2 -2 1.5 0.5 6 3")),
    ("{{ 2 * 3 % 4 ~ '%s' % 1 }}", Some("21")),
    ("{{ '%s' % -1 }} {{ '%s' % 2 ** 3 }} {{ '%s' % 'a'.upper() }} {{ '%s' % messages[0].role }} {{ '%s' % data['b'][1] }}", Some("-1 8 A user 2.5")),
    ("{{ '%s' % 'a' if 1 else 'b' }}{{ 'c' if 0 else '%s' % 'd' }}", Some("ad")),
    ("{{ '%s' % 1 == '1' and not '%s' % 2 == '3' }}", Some("True")),
    ("{% if '%s' % 1 in ['1'] %}yes{% endif %}", Some("yes")),
    ("{% set x = '%s:%s' % ('a', 'b') %}{{ x }}{% for c in '%s' % 'ab' %}[{{ c }}]{% endfor %}", Some("a:b[a][b]")),
    ("{% set f = 'n=%d' %}{{ f % 3 }}{% for i in range(3) %}{{ i % 2 }}{% endfor %}", Some("n=3010")),
    ("{{ ['%s' % 1, '%d' % 2] | join('%') }}{{ {'%s' % 'k': '%s' % 'v'} }}", Some("1%2{'k': 'v'}")),
    ("{{ ('%s' % 1).zfill('%s' % 3 | int) }}", None),
    ("{{ 'a%sb'[1:3] % 'z' }}{{ '%s' % 'abc'[::-1] }}{{ '%s' % {'a': {'b': 1}}['a'] }}", Some("zcba{'b': 1}")),
    ("{% macro m(x, y='%s' % 'd') %}{{ '<%s>' % x }}{{ y }}{% endmacro %}{{ m('%s' % 'q') }}", Some("<q>d")),
    ("{# '%s' % 1 #}{% raw %}{{ '%s' % 1 }}{% endraw %}{{- '%s' % 1 -}} x", Some("{{ '%s' % 1 }}1x")),
    ("{{ '%s' % 4 is string }}{{ 4 is divisibleby 3 % 2 }}", Some("False0")),
    ("{{ '%s, %s!' | format('Hello', name) }}|{{ '%s' | format([1, 'a']) }}|{{ '%(x)s' | format(x=3) }}|{{ '%.1f%%' | format(12.345) }}", Some("Hello, !|[1, 'a']|3|12.3%")),
    ("{{ '%s' | format }}", None),
    ("{{ 'a,b,,c'.rsplit(',', 1) }}{{ 'a,b,,c'.split(',', maxsplit=1) }}{{ 'a,b,,c'.split(sep=',') }}", Some("['a,b,', 'c']['a', 'b,,c']['a', 'b', '', 'c']")),
    ("{{ text.split() }}{{ text.split(none, 1) }}{{ text.rsplit() }}{{ text.rsplit(none, 1) }}{{ ''.split() }}{{ ''.split(',') }}", Some("['The', 'quick', 'brown', 'fox']['The', 'quick  brown\\tfox\\n']['The', 'quick', 'brown', 'fox']['  The quick  brown', 'fox'][]['']")),
    ("{{ 'x'.split('') }}", None),
    ("{{ ' a  b '.split(' ') }}{{ ' a  b '.rsplit(' ', 2) }}{{ 'aaa'.rsplit('aa') }}{{ 'aXbXc'.split('X', 0) }}", Some("['', 'a', '', 'b', ''][' a ', 'b', '']['a', '']['aXbXc']")),
    ("{{ 'foobar'.removeprefix('foo') }}{{ 'foobar'.removesuffix('bar') }}{{ 'x'.removeprefix('y') }}", Some("barfoox")),
    ("{{ 'a=b=c'.partition('=') }}{{ 'a=b=c'.rpartition('=') }}{{ 'abc'.partition('=') }}{{ 'abc'.rpartition('=') }}", Some("('a', '=', 'b=c')('a=b', '=', 'c')('abc', '', '')('', '', 'abc')")),
    ("{{ 'a'.partition('') }}", None),
    ("{{ 'héllo'.index('l') }}{{ 'héllo'.rindex('l') }}{{ 'héllo'.find('z') }}{{ 'héllo'.rfind('o', -2) }}{{ 'héllo'.find('l', 3) }}{{ 'héllo'.find('l', 0, 2) }}{{ 'abc'.find('', 3) }}{{ 'abc'.find('', 4) }}", Some("23-143-13-1")),
    ("{{ 'abc'.index('z') }}", None),
    ("{{ 'banana'.count('an') }}{{ 'banana'.count('a', 2) }}{{ 'banana'.count('a', 2, -1) }}{{ 'abc'.count('') }}", Some("2214")),
    ("{{ 'abc'.startswith('b', 1) }}{{ 'abc'.endswith('b', 0, 2) }}{{ 'abc'.startswith(('x', 'a')) }}{{ 'abc'.endswith('') }}{{ 'abc'.startswith('', 4) }}", Some("TrueTrueTrueTrueFalse")),
    ("{{ 'a\\nb\\r\\nc\\rd\\x0be\\x0cf\\x1cg\\x85h\\u2028i'.splitlines() }}{{ 'a\\nb\\n\\n'.splitlines(true) }}{{ 'a\\r\\nb'.splitlines(keepends=true) }}{{ ''.splitlines() }}", Some("['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i']['a\\n', 'b\\n', '\\n']['a\\r\\n', 'b'][]")),
    ("{{ '42'.zfill(5) }}{{ '-42'.zfill(5) }}{{ '+é'.zfill(4) }}{{ 'abc'.zfill(2) }}", Some("00042-0042+00éabc")),
    ("{{ 'ab'.ljust(5) }}|{{ 'ab'.rjust(5, '*') }}|{{ 'ab'.center(5, '-') }}|{{ 'abc'.center(6, '-') }}|{{ 'abcd'.center(2) }}", Some("ab   |***ab|--ab-|-abc--|abcd")),
    ("{{ 'ab'.ljust(5, '**') }}", None),
    ("{{ 'Straße ΣΑΣ İı ﬁ ŉ µ'.casefold() }}{{ 'Hello World'.swapcase() }}{{ 'ßaǆ'.swapcase() }}", Some("strasse σασ i̇ı fi ʼn μhELLO wORLDSSAǄ")),
    ("{{ 'a\\tb\\n\\tc'.expandtabs() }}|{{ 'a\\tb'.expandtabs(4) }}|{{ 'a\\tb'.expandtabs(tabsize=0) }}|{{ '12345678\\tx'.expandtabs() }}", Some("a       b\n        c|a   b|ab|12345678        x")),
    ("{{ \"they're bill's friends\".title() }}{{ 'hELLO wORLD'.capitalize() }}{{ 'ßx ǆy'.title() }}{{ 'ßX'.capitalize() }}{{ '1a 2b'.title() }}", Some("They'Re Bill'S FriendsHello worldSsx ǅySsx1A 2B")),
    ("{{ ' \\x1fa\\u3000'.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'abcab'.lstrip('ab') }}|{{ 'abcab'.rstrip('ab') }}|{{ ' a '.strip(none) }}|{{ 'a'.strip('') }}", Some("a|a|cab|abc|a|a")),
    ("{{ '12'.isdecimal() }}{{ '²'.isdecimal() }}{{ '²'.isdigit() }}{{ '½'.isdigit() }}{{ '½'.isnumeric() }}{{ '٣'.isdecimal() }}{{ ''.isdigit() }}{{ 'Ab Cd'.istitle() }}{{ 'aB'.istitle() }}{{ 'a_1'.isidentifier() }}{{ '1a'.isidentifier() }}{{ 'a b'.isprintable() }}{{ 'a\\n'.isprintable() }}{{ ' \\x1f'.isspace() }}", Some("TrueFalseTrueFalseTrueTrueFalseTrueFalseTrueFalseTrueFalseTrue")),
    ("{{ 'a'.upper() }}{{ 'ÀB'.lower() }}{{ 'aB'.islower() }}{{ 'AB'.isupper() }}{{ 'a1'.isalnum() }}{{ 'ab'.isalpha() }}{{ 'aé'.isascii() }}", Some("AàbFalseTrueTrueTrueFalse")),
    ("{{ ', '.join(['a', 'b']) }}{{ 'aXbXc'.replace('X', '-', 1) }}{{ 'ab'.replace('', '-') }}", Some("a, ba-bXc-a-b-")),
    ("{{ '{} {}'.format('a', 1) }}{{ '{1}{0}'.format('a', 'b') }}{{ '{x:>4}|{y:.2f}'.format(x='a', y=1.5) }}{{ '{{}}'.format() }}", Some("a 1ba   a|1.50{}")),
    ("{{ {'a': 1, 'b': 2}.get('a') }}{{ {'a': 1}.get('z') }}{{ {'a': 1}.get('z', 'd') }}{{ {'b': 1, 'a': 2}.items() | list }}{{ {'b': 1, 'a': 2}.keys() | list }}{{ {'b': 1, 'a': 2}.values() | list }}{{ {'a': 1}.copy() }}", Some("1Noned[('b', 1), ('a', 2)]['b', 'a'][1, 2]{'a': 1}")),
    ("{{ [1, 2, 1].index(1) }}{{ [1, 2, 1].index(1, 1) }}{{ [1, 2, 1].count(1) }}{{ (1, 2).index(2) }}{{ (1, 1).count(1) }}{{ [1].copy() }}", Some("02212[1]")),
    ("{{ [1].index(2) }}", None),
    ("{% set _ = [1].append(2) %}", None),
    ("{% set _ = {}.update({'a': 1}) %}", None),
    ("{% set x = [1].pop() %}", None),
    ("{{ 'abcdef'[-1] }}{{ 'abcdef'[-3:] }}{{ 'abcdef'[:-2] }}{{ 'abcdef'[::-1] }}{{ 'abcdef'[::2] }}{{ 'abcdef'[4:1:-1] }}{{ 'abcdef'[-100:100] }}{{ 'abcdef'[10:] }}{{ 'abcdef'[3:1] }}{{ 'abcdef'[-2::-2] }}", Some("fdefabcdfedcbaaceedcabcdefeca")),
    ("{{ [1,2,3,4][-1] }}{{ [1,2,3,4][-3:-1] }}{{ [1,2,3,4][::-1] }}{{ [1,2,3,4][:100] }}{{ (1,2,3)[1:] }}{{ [1,2,3,4][-100:2] }}{{ [1,2,3,4][3::-2] }}", Some("4[2, 3][4, 3, 2, 1][1, 2, 3, 4](2, 3)[1, 2][4, 2]")),
    ("{{ 'héllo'[1] }}{{ 'héllo'[-4:3] }}", Some("éél")),
    ("{{ messages[-1].role }}{{ messages[1:] }}{{ messages[-5:] | length }}", Some("user[]1")),
    ("{{ '{0[a]} {0[b]}'.format({'a': 1, 'b': 2}) }}", Some("1 2")),
    ("{{ '{x[0]}'.format(x=[3]) }}", Some("3")),
    ("{{ '{}'.format(none) }}{{ '{}'.format(true) }}{{ '{}'.format(1.0) }}{{ '{}'.format([1, 'a']) }}", Some("NoneTrue1.0[1, 'a']")),
    ("{{ '{} {}'.format('a') }}", None),
    ("{{ \"a\" \"b\" }}{{ 'x' ~ 1 ~ 2.0 ~ none ~ true ~ [1] }}", Some("abx12.0NoneTrue[1]")),
    ("{{ 'a' * 3 }}{{ [1] * 2 }}{{ [1] + [2] }}{{ (1,) + (2,) }}", Some("aaa[1, 1][1, 2](1, 2)")),
    ("{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7.0 // 2 }}", Some("3 -4 3.5 3.0 1024 0.5 3.0")),
    ("{{ 'abc' | upper | length }}{{ [3,1,2] | sort }}{{ ['b','a'] | sort | join(',') }}{{ 'abc' | list }}{{ {'b':1,'a':2} | dictsort }}", Some("3[1, 2, 3]a,b['a', 'b', 'c'][('a', 2), ('b', 1)]")),
    ("{{ [1,2,3] | sum }}{{ [1,2] | first }}{{ [1,2] | last }}{{ 'a b c' | replace(' ', '-') }}{{ '  a ' | trim }}{{ 'abc' | reverse }}", Some("612a-b-cacba")),
    ("{{ messages | map(attribute='role') | list }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", Some("['user']1")),
    ("{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}", Some("[{\"role\": \"user\", \"content\": \"x\"}]{\n  \"role\": \"user\",\n  \"content\": \"x\"\n}")),
    ("{{ messages[0].items() | list }}{{ messages[0].get('content') }}{{ messages[0]['missing'] is defined }}{{ messages[0].keys() | list }}", Some("[('role', 'user'), ('content', 'x')]xFalse['role', 'content']")),
    ("{{ data.items() | list | length }}{% for k, v in data.items() %}{{ k }}={{ v }};{% endfor %}", Some("3b=[1, 2.5, None, True];a=é<\"😀\n;z={'y': 1, 'x': [], 'w': {}};")),
    ("{% for k in data %}{{ k }},{% endfor %}{{ 'a' in data }}{{ data | length }}", Some("b,a,z,True3")),
    ("{{ [1, 2, 3] | batch(2) | list }}{{ 'hello world' | title }}{{ 'hello' | capitalize }}{{ 'a' | default('b') }}{{ missing | default('b') }}", Some("[[1, 2], [3]]Hello WorldHelloab")),
    ("{{ 'abc'[1:2] }}{{ 'abc'[:] }}{{ []|length }}{{ [[1,2],[3]][0][-1] }}", Some("babc02")),
    ("{{ '%s' % missing }}|{{ '%s' % (missing,) }}|{{ '%-10s|' % 'abc' }}|{{ '%3d%%' % 50 }}|{{ '%s' % ('a',) }}|{{ '%s' % ((1, 2),) }}", Some("||abc       || 50%|a|(1, 2)")),
    ("{{ '%s' % messages }}", Some("[{'role': 'user', 'content': 'x'}]")),
    ("{{ '%.3s|%-8.3s|' % ('abcdef', 'abcdef') }}{{ '%+.2e' % 1234.5 }}{{ '%i' % 3 }}{{ '%u' % 3 }}{{ '%5.1f|%-7.2f|' % (3.14159, 2.71828) }}", Some("abc|abc     |+1.23e+0333  3.1|2.72   |")),
    ("{{ '%s' % 'a' * 3 }}{{ 2 * '%s' % 'a' }}", None),
    ("{% set s = '%s' %}{{ s % 'a' }}{{ (s ~ '!') % 'b' }}{{ messages[0].content ~ '%d' % 3 }}", Some("ab!x3")),
    ("{{ 'x'.replace('x', '%s') % 'r' }}", Some("r")),
    ("{% if messages|length % 2 == 1 and '%d' % (messages|length) == '1' %}odd{% endif %}", Some("odd")),
    ("{{ 'Hello'.lower().split('l') }}{{ 'a-b_c'.replace('-', '_').split('_')[-1] }}{{ 'k: v'.split(': ', 1)[1] }}{{ '</think>x'.split('</think>')[-1].lstrip('\\n') }}", Some("['he', '', 'o']cvx")),
    ("{{ 'a,b'.split(',') | tojson }}{{ 'a=b'.partition('=') | tojson }}{{ 'a\\nb'.splitlines() | tojson }}", Some("[\"a\", \"b\"][\"a\", \"=\", \"b\"][\"a\", \"b\"]")),
    ("{{ 'abc' is string }}{{ 1 is number }}{{ [] is iterable }}{{ {} is mapping }}{{ none is none }}{{ 'a' is in ['a'] }}{{ 3 is odd }}{{ 1.0 is float }}{{ 1 is integer }}{{ true is boolean }}{{ () is sequence }}", Some("TrueTrueTrueTrueTrueTrueTrueTrueTrueTrueTrue")),
    ("{{ \"it's\" }}{{ [\"it's\", 'say \"hi\"', 'both\\'\"'] }}{{ ['\\n', 'é', '\\\\'] }}", Some("it's[\"it's\", 'say \"hi\"', 'both\\'\"']['\\n', 'é', '\\\\']")),
    ("{{ [1.0, 1e16, 1e-7, 100.0] }}{{ 1e16 }}{{ 12345678.9 }}{{ 0.1 + 0.2 }}", Some("[1.0, 1e+16, 1e-07, 100.0]1e+1612345678.90.30000000000000004")),
    ("{{ namespace(a=1).a }}{{ range(5) | list }}{{ range(1, 10, 3) | list }}{{ dict(a=1, b=2) }}", Some("1[0, 1, 2, 3, 4][1, 4, 7]{'a': 1, 'b': 2}")),
    ("{{ 'abcdefgh'[2:6:2] }}{{ 'abc'[-2:-1] }}{{ [1,2,3,4,5][1:4] }}{{ [1,2,3][-1:] }}{{ [1,2,3][:-1] }}{{ 'abc'[5] is defined }}", Some("ceb[2, 3, 4][3][1, 2]False")),
];

#[test]
fn templates_give_what_python_gives() {
    let mut wrong = vec![];
    for (source, expected) in CASES {
        let rendered = ChatTemplate::new("test", *source).and_then(|mut template| {
            template.set(
                "data",
                json!({
                    "b": [1, 2.5, null, true],
                    "a": "é<\"😀\n",
                    "z": { "y": 1, "x": [], "w": {} },
                }),
            );
            template.set("text", "  The quick  brown\tfox\n");
            template.set("tiny", 1e-7);
            template.set("huge", 1e22);
            template.render(&[Message::new("user", "x")], true)
        });
        match (rendered, expected) {
            (Ok(text), Some(expected)) if text == *expected => {}
            (Err(_), None) => {}
            (rendered, _) => wrong.push(format!("{source}\n  {rendered:?}\n  {expected:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_a_value_cannot_do_is_said() {
    let error = |source: &str| {
        let template = ChatTemplate::new("test", source).unwrap();
        template.render(&[Message::new("user", "x")], true).unwrap_err().to_string()
    };
    for (source, said) in [
        ("{{ messages % 'a' }}", "`%` needs two numbers, or a text and values"),
        ("{{ '%d' % 'a' }}", "`%d` needs a number, not a string"),
        ("{{ '%s %s' % 'a' }}", "not enough values"),
        ("{{ '%(k)s' % {'a': 1} }}", "no such key"),
        ("{{ 7 % 0 }}", "7 % 0"),
        ("{% set _ = messages.append(1) %}", "in transformers either"),
        ("{{ 'a'.encode() }}", "encode"),
        ("{{ 'a'.split(' ', 1, 2) }}", "at most 2 arguments"),
        ("{{ 'a'.split(most=1) }}", "no argument `most`"),
        ("{{ 'a'.zfill('b') }}", "a whole number"),
        ("{{ 1 | tojson(separators=':') }}", "not a pair of texts"),
        ("{{ {'a': raise_exception} | tojson }}", "is not JSON"),
    ] {
        let error = error(source);
        assert!(error.contains(said), "{source}: {error}");
    }
}

#[test]
fn a_tables_keys_stay_in_their_order() {
    let table: toml::Table = toml::from_str("t = { z = 1, a = { y = [], b = 2 }, m = 0 }").unwrap();
    let value: serde_json::Value = serde_json::to_value(&table["t"]).unwrap();
    let mut template = ChatTemplate::new("test", "{{ t | tojson }}{{ t }}").unwrap();
    template.set("t", value);
    assert_eq!(
        template.render(&[], false).unwrap(),
        "{\"z\": 1, \"a\": {\"y\": [], \"b\": 2}, \"m\": 0}\
         {'z': 1, 'a': {'y': [], 'b': 2}, 'm': 0}"
    );
}

#[test]
fn no_function_makes_more_than_its_bound() {
    for source in [
        "{{ 'a'.ljust(99999999999999999999999) }}",
        "{{ 'a'.center(1000000000, 'x') }}",
        "{{ '1'.zfill(1000000000) }}",
        "{{ 'a\tb\tc'.expandtabs(1000000000) }}",
        "{{ '%99999s' % 1 }}",
        "{{ '%*d' % (99999, 1) }}",
        "{{ '%.*f' % (99999, 1.0) }}",
        "{{ '%99999999999999999999999999999999999999999s' | format(1) }}",
        "{{ ('a' * 3000000).split('a') }}",
        "{{ ('a' * 3000000).rsplit('a') }}",
        "{{ ('a ' * 3000000).split() }}",
        "{{ ('a\n' * 3000000).splitlines() }}",
        "{% set x = ['a' * 5000000] * 100 %}{{ x | tojson }}",
        "{% set x = ['a' * 5000000] * 100 %}{{ x }}",
        "{% set x = ['a' * 5000000] * 100 %}{{ '%s' % (x,) }}",
        "{% set x = 'a' * 5000000 %}{{ ('%.1s' * 10000) % ([x] * 10000) | list }}",
        "{% set x = ['a' * 1000] * 10000 %}{{ ('%(x).1s' * 10000) % {'x': x} }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}\
         {% endfor %}{{ ns.x | tojson }}",
    ] {
        let template = ChatTemplate::new("test", source).unwrap();
        let error = template.render(&[], false).expect_err(source).to_string();
        assert!(error.len() < 2000, "{error}");
    }
    // More operators than anyone writes.
    for source in [
        format!("{{{{ {}1 }}}}", "'%s' % ".repeat(15_000)),
        format!("{{{{ {}1{} }}}}", "('%s' % ".repeat(10_000), ")".repeat(10_000)),
        format!("{{{{ {} }}}}", "'%s' % 1 ~ ".repeat(11_000)),
        "{{ '%s' %".repeat(10_000),
        "{% raw %}{{ '%s' % ".into(),
        "{# {{ '%s' % 1".into(),
        "{{ ')' % ) ] } }}".into(),
    ] {
        let rendered = ChatTemplate::new("test", source).and_then(|t| t.render(&[], false));
        assert!(rendered.is_err());
    }
}

#[test]
fn only_the_operator_becomes_a_call() {
    for (source, expected) in [
        ("{{ '%s' % x }}", "{{ __percent__( '%s' , x) }}"),
        ("{%- if a*'%s'%x -%}", "{%- if __percent__( a*'%s', x) -%}"),
        (
            "{{ a ~ b % c | d(e % f) == g }}",
            "{{ a ~ __percent__( b , c | d( __percent__(e , f))) == g }}",
        ),
        ("{{ a % b % c }}", "{{ __percent__( __percent__( a , b) , c) }}"),
        ("{{ a is b 3 % 2 }}", "{{ __percent__( a is b 3 , 2) }}"),
        (
            "{{ -1 % x if not y % 2 else z }}",
            "{{ __percent__( -1 , x) if not __percent__( y , 2) else z }}",
        ),
        ("{{ a.in % a['if'] }}", "{{ __percent__( a.in , a['if']) }}"),
    ] {
        let squeezed = |text: &str| text.split_whitespace().collect::<String>();
        let rewritten = percent::with_calls(source).unwrap();
        assert_eq!(squeezed(&rewritten), squeezed(expected), "{rewritten}");
    }
    for source in [
        "a % b",
        "{# a % b #}",
        "{% raw %}{{ a % b }}{% endraw %}",
        "{{ '%' }}{% set x = \"a%\" %}",
    ] {
        assert_eq!(percent::with_calls(source), None, "{source}");
    }
}
