package config

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxVisits bounds how many values are looked at: no file reaches it without aliases that multiply.
const maxVisits = 2_000_000

// decoder reads one file's tree into the Config. It is strict: what it does not know, it reports, and it goes on to find the rest.
type decoder struct {
	*loader
	file string
}

// field is a setting that may stand in a mapping.
type field struct {
	name string
	set  func(n *node, path string)
}

func (d *decoder) wrongAt(line, column int, path, format string, args ...any) {
	d.problems = append(d.problems, Problem{File: d.file, Line: line, Column: column, Path: path, Message: fmt.Sprintf(format, args...)})
}

func (d *decoder) wrong(n *node, path, format string, args ...any) {
	d.wrongAt(n.line, n.column, path, format, args...)
}

func (d *decoder) odd(n *node, path, format string, args ...any) {
	d.config.Warnings = append(d.config.Warnings, Problem{File: d.file, Line: n.line, Column: n.column, Path: path, Message: fmt.Sprintf(format, args...)})
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// usable reports a value that is bad whatever is expected.
func (d *decoder) usable(n *node, path string) bool {
	if d.visits++; d.visits > maxVisits {
		d.tooLarge(n, path)
		return false
	}
	if n.bad != "" {
		d.wrong(n, path, "%s", n.bad)
		return false
	}
	return true
}

// tooLarge is said once for all files.
func (d *decoder) tooLarge(n *node, path string) {
	if d.large {
		return
	}
	d.large = true
	d.wrong(n, path, "the configuration is too large with its aliases written out; use fewer")
}

// be reports a value of another kind than the expected one, with the word for what was expected.
func (d *decoder) be(n *node, path string, kind nodeKind, what string) bool {
	if !d.usable(n, path) {
		return false
	}
	if n.kind == kind {
		return true
	}
	found, hint := n.what(), fmt.Sprintf("; put it in quotes: %q", n.text)
	if mayBeSecret(path) {
		found, hint = n.kindOnly(), "; put it in quotes"
	}
	if kind != stringNode || n.kind != boolNode && n.kind != numberNode {
		hint = ""
	}
	d.wrong(n, path, "must be %s, is %s%s", what, found, hint)
	return false
}

// mayBeSecret says that a value may be a password: a provider's variables and settings. It is not quoted.
func mayBeSecret(path string) bool {
	_, field, ok := strings.Cut(path, "].")
	return ok && strings.HasPrefix(path, "providers[") && (strings.HasPrefix(field, "env") || strings.HasPrefix(field, "config"))
}

// kindOnly names the value for a message without quoting it.
func (n *node) kindOnly() string {
	switch n.kind {
	case boolNode:
		return "true or false"
	case numberNode:
		return "a number"
	case stringNode:
		return "a string"
	default:
		return n.what()
	}
}

// what names the value for a message.
func (n *node) what() string {
	switch n.kind {
	case nullNode:
		return "empty"
	case boolNode, numberNode:
		return n.text
	case stringNode:
		return "the string " + quote(n.text)
	case listNode:
		return "a list"
	default:
		return "a mapping"
	}
}

// quote shortens what nobody wants to read in full in a message.
func quote(s string) string {
	if len(s) > 100 {
		return strconv.Quote(s[:100]) + "…"
	}
	return strconv.Quote(s)
}

// object decodes a mapping. A field without a value counts as not set, as in the kubelet's configuration; that is said as a warning.
func (d *decoder) object(n *node, path string, fields []field) {
	if !d.be(n, path, mapNode, "a mapping") {
		return
	}
	for i := range n.entries {
		e := &n.entries[i]
		child := join(path, e.name)
		if e.bad != "" {
			d.wrongAt(e.line, e.column, child, "%s", e.bad)
			continue
		}
		at := slices.IndexFunc(fields, func(f field) bool { return f.name == e.name })
		switch {
		case at < 0:
			d.wrongAt(e.line, e.column, child, "%s", unknown(e.name, fields))
		case e.value.kind == nullNode && e.value.bad == "":
			d.odd(&node{line: e.line, column: e.column}, child, "the field has no value and counts as not set; give it one or remove it")
		default:
			fields[at].set(e.value, child)
		}
	}
}

func unknown(name string, fields []field) string {
	if hint, ok := elsewhere[name]; ok {
		return "unknown field; " + hint
	}
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	if near := nearest(name, names); near != "" {
		return fmt.Sprintf("unknown field; did you mean %q?", near)
	}
	return "unknown field; known here: " + strings.Join(names, ", ")
}

// elsewhere says where fields belong that stand in a kubelet's entry for a credential provider, and not in ours.
var elsewhere = map[string]string{
	"args":    "the arguments of a wrapped credential provider belong under config, of backend exec",
	"command": "the path of a wrapped credential provider belongs under config, of backend exec",
}

// required reports an empty string besides.
func (d *decoder) required(to *string) func(*node, string) {
	return func(n *node, path string) {
		if !d.be(n, path, stringNode, "a string") {
			return
		}
		if *to = n.text; n.text == "" {
			d.wrong(n, path, "must not be empty")
		}
	}
}

func (d *decoder) bool(to *bool) func(*node, string) {
	return func(n *node, path string) {
		if d.be(n, path, boolNode, "true or false") {
			*to = n.text == "true"
		}
	}
}

func oneOf[T ~string](d *decoder, to *T, values ...T) func(*node, string) {
	return func(n *node, path string) {
		names := make([]string, len(values))
		for i, v := range values {
			names[i] = string(v)
		}
		if !d.be(n, path, stringNode, "one of "+strings.Join(names, ", ")) {
			return
		}
		if !slices.Contains(names, n.text) {
			message := fmt.Sprintf("must be one of %s, is %s", strings.Join(names, ", "), quote(n.text))
			if near := nearest(n.text, names); near != "" {
				message += fmt.Sprintf("; did you mean %q?", near)
			}
			d.wrong(n, path, "%s", message)
			return
		}
		*to = T(n.text)
	}
}

// duration reads a Go duration of at least low and, unless that is zero, at most high.
func (d *decoder) duration(to *time.Duration, low, high time.Duration) func(*node, string) {
	return func(n *node, path string) {
		if !d.usable(n, path) {
			return
		}
		if n.kind == numberNode {
			d.wrong(n, path, "must be a duration, is the number %s; add a unit, as in %ss", n.text, n.text)
			return
		}
		if !d.be(n, path, stringNode, "a duration such as 45s") {
			return
		}
		v, err := time.ParseDuration(n.text)
		switch {
		case err != nil:
			d.wrong(n, path, "%s is no duration; write numbers with units, such as 45s, 15m or 1h30m", quote(n.text))
		case v < 0:
			d.wrong(n, path, "%s is negative; write a duration of at least %s", n.text, short(low))
		case v < low:
			d.wrong(n, path, "%s is too short; write a duration of at least %s", n.text, short(low))
		case high > 0 && v > high:
			d.wrong(n, path, "%s is longer than %s, and the kubelet kills its plugin after 60s; write at most %s", n.text, short(high), short(high))
		default:
			*to = v
		}
	}
}

// short leaves out units of zero: 1m0s is 1m.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// list decodes each item.
func (d *decoder) list(n *node, path, of string, each func(i int, item *node, path string)) {
	if !d.be(n, path, listNode, "a list of "+of) {
		return
	}
	for i, item := range n.items {
		each(i, item, index(path, i))
	}
}

// strings decodes a list of strings, each of which check finds nothing wrong with.
func (d *decoder) strings(to *[]string, of string, check func(s string) string) func(*node, string) {
	return func(n *node, path string) {
		d.list(n, path, of, func(_ int, item *node, path string) {
			if !d.be(item, path, stringNode, "a string") {
				return
			}
			if message := check(item.text); message != "" {
				d.wrong(item, path, "%s", message)
				return
			}
			*to = append(*to, item.text)
		})
	}
}

// once reports a setting that another file has too.
func (d *decoder) once(set func(*node, string)) func(*node, string) {
	return func(n *node, path string) {
		at := d.file + ":" + strconv.Itoa(n.line)
		if first, ok := d.seen[path]; ok {
			d.wrong(n, path, "the setting stands in two files, first in %s; keep one: only providers may stand in several", first)
			return
		}
		d.seen[path] = at
		set(n, path)
	}
}

func (d *decoder) document(root *node) {
	c := d.config
	if !d.header(root) {
		return
	}
	nothing := func(*node, string) {}
	d.object(root, "", []field{
		{"apiVersion", nothing},
		{"kind", nothing},
		{"backendDir", d.once(d.absolutePath(&c.BackendDir))},
		{"timeout", d.once(d.duration(&c.Timeout, time.Millisecond, MaxTimeout))},
		{"maxCacheDuration", d.once(d.maxCacheDuration)},
		{"overlapPolicy", d.once(oneOf(d, &c.OverlapPolicy, First, Fallback))},
		{"log", d.once(d.log)},
		{"agent", d.once(d.agent)},
		{"providers", func(n *node, path string) { d.list(n, path, "providers", d.provider) }},
	})
}

// header checks apiVersion and kind first: the fields of another kind of document are not worth a list of problems.
func (d *decoder) header(root *node) bool {
	if !d.be(root, "", mapNode, "a mapping that begins with \"apiVersion: "+APIVersion+"\" and \"kind: "+Kind+"\"") {
		return false
	}
	ours := true
	for _, want := range []struct{ name, value string }{{"apiVersion", APIVersion}, {"kind", Kind}} {
		n := root.child(want.name)
		switch {
		case n == nil:
			d.wrong(root, want.name, "is missing; write \"%s: %s\"", want.name, want.value)
		case !d.usable(n, want.name):
			ours = false
		case n.kind != stringNode || n.text != want.value:
			ours = false
			if n.kind == stringNode && n.text == "CredentialProviderConfig" {
				d.wrong(n, want.name, "this is the kubelet's configuration; turn it into the broker's with \"credential-broker migrate %s\"", d.file)
				continue
			}
			d.wrong(n, want.name, "must be %q, is %s", want.value, n.what())
		}
	}
	return ours
}

func (d *decoder) maxCacheDuration(n *node, path string) {
	if n.kind == stringNode && n.text == "" && n.bad == "" {
		return // no bound
	}
	v := time.Duration(-1)
	if d.duration(&v, 0, 0)(n, path); v >= 0 {
		d.config.MaxCacheDuration = &v
	}
}

func (d *decoder) log(n *node, path string) {
	c := &d.config.Log
	d.object(n, path, []field{
		{"level", oneOf(d, &c.Level, "debug", "info", "warn", "error")},
		{"format", oneOf(d, &c.Format, "text", "json")},
		{"file", d.absolutePath(&c.File)},
	})
}

func (d *decoder) agent(n *node, path string) {
	c := &d.config.Agent
	d.object(n, path, []field{
		{"socket", d.checked(&c.Socket, wrongSocket)},
		{"autoStart", d.bool(&c.AutoStart)},
		{"idleTimeout", d.duration(&c.IdleTimeout, time.Millisecond, 0)},
		{"metrics", d.checked(&c.Metrics, wrongMetrics)},
	})
	if c.AutoStart && c.Socket == "" && n.kind == mapNode {
		d.odd(n, path+".autoStart", "nothing is started without a socket; set agent.socket, --agent or CREDENTIAL_BROKER_AGENT")
	}
}

// checked decodes a string that may be empty; what is not must pass the check.
func (d *decoder) checked(to *string, check func(string) string) func(*node, string) {
	return func(n *node, path string) {
		if !d.be(n, path, stringNode, "a string") || n.text == "" {
			return
		}
		if message := check(n.text); message != "" {
			d.wrong(n, path, "%s", message)
			return
		}
		*to = n.text
	}
}

func (d *decoder) absolutePath(to *string) func(*node, string) { return d.checked(to, wrongPath) }

func (d *decoder) provider(_ int, n *node, path string) {
	p := &Provider{Timeout: DefaultProviderTimeout, Config: json.RawMessage("{}"), At: d.file + ":" + strconv.Itoa(n.line)}
	if !d.be(n, path, mapNode, "a mapping with name, backend and matchImages") {
		return
	}
	d.object(n, path, []field{
		{"name", d.name(p)},
		{"backend", d.checked(&p.Backend, wrongBackend)},
		{"matchImages", d.matchImages(p)},
		{"defaultCacheDuration", func(n *node, path string) {
			v := time.Duration(-1)
			if d.duration(&v, 0, 0)(n, path); v >= 0 {
				p.DefaultCacheDuration = &v
			}
		}},
		{"timeout", d.duration(&p.Timeout, time.Millisecond, 0)},
		{"env", d.env(p)},
		{"inheritEnv", d.strings(&p.InheritEnv, "globs", wrongGlob)},
		{"sha256", d.digests(p)},
		{"user", d.user(p)},
		{"tokenAttributes", d.tokenAttributes(p)},
		{"mirrors", d.mirrors(p)},
		{"config", func(n *node, path string) {
			if d.be(n, path, mapNode, "a mapping") {
				p.Config = d.settings(n, path)
			}
		}},
	})
	if n.unset("name") {
		d.wrong(n, path+".name", "is missing; give the provider a name of its own")
	}
	if backend := n.child("backend"); n.unset("backend") || backend.kind == stringNode && backend.text == "" {
		if p.Name != "" && wrongBackend(p.Name) != "" {
			d.wrong(n, path+".backend", "is missing, and the provider's name %s is no backend's name; name the backend, such as exec", quote(p.Name))
		}
		p.Backend = p.Name
	}
	if n.unset("matchImages") {
		d.wrong(n, path+".matchImages", "is missing; list the images that this provider has credentials for, such as registry.example.com")
	}
	d.config.Providers = append(d.config.Providers, p)
	if _, ok := d.config.places[p.Name]; !ok {
		d.config.places[p.Name] = entryPlace{file: d.file, path: path, node: n}
	}
}
