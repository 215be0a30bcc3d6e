package backends

import (
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// decodeSettings decodes a provider's settings, one JSON object, into what `into` points to. It is stricter than encoding/json: names are compared case and all, an
// unknown field, a duplicate one, a null or a value of another type is an error, and every such problem is reported (joined, each as InvalidConfig makes them) with
// the path of its field. A time.Duration is written as a string ("1m30s"). Types with UnmarshalJSON or UnmarshalText decode themselves. No message quotes a
// value, since a setting may be a secret.
func decodeSettings(data []byte, into any) error {
	if len(bytes.TrimSpace(data)) == 0 {
		data = []byte("{}")
	}
	if !utf8.Valid(data) {
		return InvalidConfig("", "settings are not UTF-8")
	}
	// Valid settles the syntax, trailing data and the depth of nesting, so that what follows need not.
	if !json.Valid(data) {
		var raw json.RawMessage
		return InvalidConfig("", "settings are no JSON object: %w", json.Unmarshal(data, &raw))
	}
	var d settingsDecoder
	root, err := d.parse(data)
	if err != nil {
		return InvalidConfig("", "settings are no JSON object: %w", err)
	}
	d.findDuplicates(root, "")
	if root.kind != object {
		d.problem("", "want %s, got %s", object, root.kind)
	} else {
		d.decode(root, reflect.ValueOf(into).Elem(), "")
	}
	if more := len(d.problems) - maxProblems; more > 0 {
		d.problems = append(d.problems[:maxProblems], InvalidConfig("", "%d more problems are not listed", more))
	}
	return errors.Join(d.problems...)
}

// maxProblems keeps a list of problems readable, and an answer within the protocol's bounds.
const maxProblems = 50

type settingsDecoder struct{ problems []error }

func (d *settingsDecoder) problem(path, format string, args ...any) {
	d.problems = append(d.problems, InvalidConfig(path, format, args...))
}

// jsonKind is a JSON type, as people call it.
type jsonKind string

const (
	null     jsonKind = "null"
	boolean  jsonKind = "true or false"
	number   jsonKind = "a number"
	text     jsonKind = "a string"
	array    jsonKind = "a list"
	object   jsonKind = "an object"
	integer           = "a whole number"
	duration          = `a duration such as "90s" or "1h30m"`
)

// node is one JSON value. A tree, rather than tokens, because all problems are to be found and types that decode themselves want their raw text.
type node struct {
	kind    jsonKind
	raw     json.RawMessage
	scalar  any // bool, string or json.Number
	items   []*node
	members []member
}

type member struct {
	name  string
	value *node
}

func (*settingsDecoder) parse(data []byte) (*node, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	n, err := parseValue(dec, data)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func parseValue(dec *json.Decoder, data []byte) (*node, error) {
	start := dec.InputOffset()
	token, err := dec.Token()
	if err != nil {
		return nil, err
	}
	n := &node{scalar: token}
	switch t := token.(type) {
	case nil:
		n.kind = null
	case bool:
		n.kind = boolean
	case json.Number:
		n.kind = number
	case string:
		n.kind = text
	case json.Delim:
		n.kind = array
		if t == '{' {
			n.kind = object
		}
		for dec.More() {
			if n.kind == array {
				item, err := parseValue(dec, data)
				if err != nil {
					return nil, err
				}
				n.items = append(n.items, item)
				continue
			}
			name, err := dec.Token()
			if err != nil {
				return nil, err
			}
			value, err := parseValue(dec, data)
			if err != nil {
				return nil, err
			}
			n.members = append(n.members, member{name.(string), value})
		}
		if _, err := dec.Token(); err != nil {
			return nil, err
		}
	}
	// Between a token and the one before it there is nothing but space and punctuation.
	n.raw = bytes.TrimLeft(data[start:dec.InputOffset()], " \t\r\n,:")
	return n, nil
}

func (d *settingsDecoder) findDuplicates(n *node, path string) {
	for i, item := range n.items {
		d.findDuplicates(item, index(path, i))
	}
	seen := make(map[string]bool, len(n.members))
	for _, m := range n.members {
		at := field(path, m.name)
		if seen[m.name] {
			d.problem(at, "is given twice: keep one")
		}
		seen[m.name] = true
		d.findDuplicates(m.value, at)
	}
}

var (
	durationType        = reflect.TypeFor[time.Duration]()
	unmarshalerType     = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshalerType = reflect.TypeFor[encoding.TextUnmarshaler]()
)

func (d *settingsDecoder) decode(n *node, v reflect.Value, path string) {
	if n.kind == null && (v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface) {
		v.SetZero() // the one place where null can mean something
		return
	}
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		v = v.Elem()
	}
	if reflect.PointerTo(v.Type()).Implements(unmarshalerType) {
		if err := v.Addr().Interface().(json.Unmarshaler).UnmarshalJSON(n.raw); err != nil {
			d.problem(path, "%w", err)
		}
		return
	}
	if reflect.PointerTo(v.Type()).Implements(textUnmarshalerType) {
		if s, ok := n.scalar.(string); !ok {
			d.mismatch(path, string(text), n)
		} else if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
			d.problem(path, "%w", err)
		}
		return
	}
	if v.Type() == durationType {
		s, ok := n.scalar.(string)
		parsed, err := time.ParseDuration(s)
		switch {
		case !ok:
			d.mismatch(path, duration, n)
		case err != nil:
			d.problem(path, "want %s, which this is not", duration)
		default:
			v.SetInt(int64(parsed))
		}
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		if b, ok := n.scalar.(bool); ok {
			v.SetBool(b)
			return
		}
		d.mismatch(path, string(boolean), n)
	case reflect.String:
		if s, ok := n.scalar.(string); ok {
			v.SetString(s)
			return
		}
		d.mismatch(path, string(text), n)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		d.number(n, path, integer, func(s string) error {
			i, err := strconv.ParseInt(s, 10, v.Type().Bits())
			v.SetInt(i)
			return err
		})
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		d.number(n, path, integer, func(s string) error {
			u, err := strconv.ParseUint(s, 10, v.Type().Bits())
			v.SetUint(u)
			return err
		})
	case reflect.Float32, reflect.Float64:
		d.number(n, path, string(number), func(s string) error {
			f, err := strconv.ParseFloat(s, v.Type().Bits())
			v.SetFloat(f)
			return err
		})
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.Map:
		d.mapping(n, v, path)
	case reflect.Slice, reflect.Array:
		d.list(n, v, path)
	case reflect.Interface:
		if v.NumMethod() > 0 {
			d.problem(path, "the backend cannot decode into a %s", v.Type())
			return
		}
		d.delegate(n, v, path)
	default:
		d.problem(path, "the backend cannot decode into a %s", v.Type())
	}
}

// delegate has encoding/json decode a value whose type has no names to be strict about.
func (d *settingsDecoder) delegate(n *node, v reflect.Value, path string) {
	if err := json.Unmarshal(n.raw, v.Addr().Interface()); err != nil {
		d.problem(path, "want a %s, got %s", v.Type(), n.kind)
	}
}

func (d *settingsDecoder) mismatch(path, want string, n *node) {
	if n.kind == null {
		d.problem(path, "want %s, got null: give a value or leave the field out", want)
		return
	}
	d.problem(path, "want %s, got %s", want, n.kind)
}

func (d *settingsDecoder) number(n *node, path, want string, set func(string) error) {
	s, ok := n.scalar.(json.Number)
	if !ok {
		d.mismatch(path, want, n)
		return
	}
	err := set(string(s))
	if errors.Is(err, strconv.ErrRange) || err != nil && strings.HasPrefix(string(s), "-") && !strings.ContainsAny(string(s), ".eE") {
		d.problem(path, "the number is out of range")
	} else if err != nil {
		d.problem(path, "want %s", want)
	}
}

func (d *settingsDecoder) list(n *node, v reflect.Value, path string) {
	if v.Type().Elem().Kind() == reflect.Uint8 && v.Kind() == reflect.Slice && n.kind == text {
		if err := json.Unmarshal(n.raw, v.Addr().Interface()); err != nil {
			d.problem(path, "want base64, which this is not")
		}
		return
	}
	if n.kind != array {
		d.mismatch(path, string(array), n)
		return
	}
	if v.Kind() == reflect.Array {
		if len(n.items) != v.Len() {
			d.problem(path, "want %d values, got %d", v.Len(), len(n.items))
			return
		}
	} else {
		v.Set(reflect.MakeSlice(v.Type(), len(n.items), len(n.items)))
	}
	for i, item := range n.items {
		d.decode(item, v.Index(i), index(path, i))
	}
}

func (d *settingsDecoder) mapping(n *node, v reflect.Value, path string) {
	if n.kind != object {
		d.mismatch(path, string(object), n)
		return
	}
	if v.Type().Key().Kind() != reflect.String || reflect.PointerTo(v.Type().Key()).Implements(textUnmarshalerType) {
		d.delegate(n, v, path)
		return
	}
	v.Set(reflect.MakeMapWithSize(v.Type(), len(n.members)))
	for _, m := range n.members {
		value := reflect.New(v.Type().Elem()).Elem()
		d.decode(m.value, value, field(path, m.name))
		v.SetMapIndex(reflect.ValueOf(m.name).Convert(v.Type().Key()), value)
	}
}

func (d *settingsDecoder) structure(n *node, v reflect.Value, path string) {
	if n.kind != object {
		d.mismatch(path, string(object), n)
		return
	}
	known := fieldsOf(v.Type())
	for _, m := range n.members {
		where, ok := known[m.name]
		if !ok {
			d.problem(field(path, m.name), "unknown field%s", suggestion(m.name, known))
			continue
		}
		target, err := fieldByIndex(v, where)
		if err != nil {
			d.problem(field(path, m.name), "the backend cannot decode this field: %w", err)
			continue
		}
		d.decode(m.value, target, field(path, m.name))
	}
}

// fieldByIndex is reflect's, but makes what embedded pointers point to.
func fieldByIndex(v reflect.Value, where []int) (reflect.Value, error) {
	for i, x := range where {
		if i > 0 && v.Kind() == reflect.Pointer {
			if v.IsNil() {
				if !v.CanSet() {
					return v, fmt.Errorf("the embedded %s is not exported", v.Type().Elem())
				}
				v.Set(reflect.New(v.Type().Elem()))
			}
			v = v.Elem()
		}
		v = v.Field(x)
	}
	return v, nil
}

// fieldsOf gives the names that a struct is decoded from and where they go, by encoding/json's rules: the tag's name or else the field's; the fields of an embedded
// struct without a tag count as the outer one's, the shallowest wins, then the tagged one, and what is still ambiguous is left out.
func fieldsOf(t reflect.Type) map[string][]int {
	type candidate struct {
		index  []int
		tagged bool
	}
	candidates := map[string][]candidate{}
	var collect func(t reflect.Type, index []int, above []reflect.Type)
	collect = func(t reflect.Type, index []int, above []reflect.Type) {
		if slices.Contains(above, t) {
			return
		}
		above = append(slices.Clone(above), t)
		for i := range t.NumField() {
			f := t.Field(i)
			tag := f.Tag.Get("json")
			name, _, _ := strings.Cut(tag, ",")
			at := append(slices.Clone(index), i)
			inner := f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			switch {
			case tag == "-":
			case f.Anonymous && name == "" && inner.Kind() == reflect.Struct:
				collect(inner, at, above)
			case f.IsExported():
				candidates[cmp.Or(name, f.Name)] = append(candidates[cmp.Or(name, f.Name)], candidate{at, name != ""})
			}
		}
	}
	collect(t, nil, nil)
	fields := make(map[string][]int, len(candidates))
	for name, all := range candidates {
		slices.SortStableFunc(all, func(a, b candidate) int {
			if c := cmp.Compare(len(a.index), len(b.index)); c != 0 {
				return c
			}
			switch {
			case a.tagged && !b.tagged:
				return -1
			case b.tagged && !a.tagged:
				return 1
			}
			return 0
		})
		if len(all) > 1 && len(all[0].index) == len(all[1].index) && all[0].tagged == all[1].tagged {
			continue
		}
		fields[name] = all[0].index
	}
	return fields
}

// suggestion names the field that was probably meant, or else those that exist.
func suggestion(name string, known map[string][]int) string {
	names := make([]string, 0, len(known))
	for k := range known {
		names = append(names, k)
	}
	slices.Sort(names)
	best, nearest := len(name)/3+1, ""
	for _, k := range names {
		if n := editDistance(strings.ToLower(name), strings.ToLower(k)); n <= best && (nearest == "" || n < best) {
			best, nearest = n, k
		}
	}
	switch {
	case nearest != "":
		return fmt.Sprintf(": did you mean %q?", nearest)
	case len(names) == 0:
		return ": there are no settings here"
	case len(names) > 20:
		return ""
	default:
		return ": there are " + strings.Join(names, ", ")
	}
}

// editDistance counts the insertions, deletions, replacements and swaps of neighbours that make one string of the other. Long names are not compared.
func editDistance(a, b string) int {
	const long = 64
	if len(a) > long || len(b) > long {
		return long
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range len(b) + 1 {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// field is the path of a name below path: "a.b", or `a["b.c"]` where the name is no plain word.
func field(path, name string) string {
	plain := name != ""
	for _, r := range name {
		plain = plain && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-')
	}
	if len(name) > 64 {
		name, plain = strings.ToValidUTF8(name[:64], "")+"…", false
	}
	switch {
	case !plain:
		return path + "[" + strconv.Quote(name) + "]"
	case path == "":
		return name
	default:
		return path + "." + name
	}
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// secretsIn finds the values of type Secret in decoded settings, so that they can be kept out of messages.
func secretsIn(v reflect.Value) []string {
	secretType := reflect.TypeFor[Secret]()
	var found []string
	var walk func(v reflect.Value, depth int)
	walk = func(v reflect.Value, depth int) {
		if depth > 64 {
			return // a type that points to itself
		}
		if v.Type() == secretType {
			found = append(found, v.String())
			return
		}
		switch v.Kind() {
		case reflect.Pointer, reflect.Interface:
			if !v.IsNil() {
				walk(v.Elem(), depth+1)
			}
		case reflect.Struct:
			for _, field := range v.Fields() {
				walk(field, depth+1)
			}
		case reflect.Slice, reflect.Array:
			for i := range v.Len() {
				walk(v.Index(i), depth+1)
			}
		case reflect.Map:
			for it := v.MapRange(); it.Next(); {
				walk(it.Value(), depth+1)
			}
		}
	}
	walk(v, 0)
	return found
}
