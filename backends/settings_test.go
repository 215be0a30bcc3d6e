package backends

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// upper decodes itself from a string, odd from any JSON.
type upper string

func (u *upper) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		return errors.New("want a word")
	}
	*u = upper(strings.ToUpper(string(b)))
	return nil
}

type odd struct{ raw string }

func (o *odd) UnmarshalJSON(b []byte) error {
	o.raw = string(b)
	if o.raw == `"bad"` {
		return errors.New("this is bad")
	}
	return nil
}

type Common struct {
	Region string `json:"region"`
	Both   string `json:"both"`
}

type settings struct {
	Common
	URL      string        `json:"url"`
	Both     int           `json:"both"`
	Timeout  time.Duration `json:"timeout"`
	Retries  int8          `json:"retries"`
	Size     uint16        `json:"size"`
	Ratio    float64       `json:"ratio"`
	Insecure bool          `json:"insecure"`
	Secrets  []struct {
		Path string `json:"path"`
	} `json:"secrets"`
	Labels   map[string]string  `json:"labels"`
	Nested   map[string]*Common `json:"nested"`
	Pointer  *Common            `json:"pointer"`
	Upper    upper              `json:"upper"`
	Odd      odd                `json:"odd"`
	Any      any                `json:"any"`
	Bytes    []byte             `json:"bytes"`
	Pair     [2]int             `json:"pair"`
	Numbers  map[int]string     `json:"numbers"`
	Password Secret             `json:"password"`
	Untagged string
	Hidden   string `json:"-"`
	private  string //nolint:unused // fields that are not exported are not settings
}

func TestDecodeSettings(t *testing.T) {
	common := Common{Region: "eu"}
	tests := []struct {
		name string
		in   string
		want settings
		errs []string // "field: message"
	}{
		{name: "nothing", in: ``},
		{name: "an empty object", in: ` {} `},
		{
			name: "every type", in: `{"region":"eu","url":"u","both":1,"timeout":"1m30s","retries":-3,"size":65535,"ratio":1e-1,"insecure":true,"secrets":[{"path":"a"},{}],
			"labels":{"x y":"z"},"nested":{"n":{"region":"eu"},"o":null},"pointer":{"region":"eu"},"upper":"abc","odd":[1, {"x":2}],"any":{"a":[1]},"bytes":"AQI=","pair":[1,2],"numbers":{"1":"a"},
			"password":"p","Untagged":"t"}`,
			want: settings{
				Common: common, URL: "u", Both: 1, Timeout: 90 * time.Second, Retries: -3, Size: 65535, Ratio: 0.1, Insecure: true,
				Secrets: []struct {
					Path string `json:"path"`
				}{{"a"}, {}}, Labels: map[string]string{"x y": "z"}, Nested: map[string]*Common{"n": {Region: "eu"}, "o": nil}, Pointer: &common,
				Upper: "ABC", Odd: odd{`[1, {"x":2}]`}, Any: map[string]any{"a": []any{1.0}}, Bytes: []byte{1, 2}, Pair: [2]int{1, 2}, Numbers: map[int]string{1: "a"}, Password: "p", Untagged: "t",
			},
		},
		{name: "null where nothing is a value", in: `{"pointer":null,"any":null}`},
		{name: "escapes in names and values", in: `{"\u0075rl":"\u00e4\n"}`, want: settings{URL: "ä\n"}},

		{name: "an unknown field with one like it", in: `{"ulr":"x"}`, errs: []string{`ulr: unknown field: did you mean "url"?`}},
		{name: "a field in other letters", in: `{"URL":"x"}`, errs: []string{`URL: unknown field: did you mean "url"?`}},
		{name: "an unknown field deep down", in: `{"secrets":[{},{"nothinglikeit":1}]}`, errs: []string{`secrets[1].nothinglikeit: unknown field: there are path`}},
		{name: "a field that JSON does not have", in: `{"Hidden":"x","private":"y","Common":{}}`, errs: []string{`Hidden: unknown field`, `private: unknown field`, `Common: unknown field`}},
		{
			name: "wrong types", in: `{"url":1,"both":"x","timeout":5,"retries":true,"ratio":"1","insecure":"true","secrets":{},"labels":[],"pointer":"x","upper":1,"pair":[1],"numbers":{"x":"y"},"bytes":"%"}`,
			errs: []string{
				"url: want a string, got a number", "both: want a whole number, got a string", `timeout: want a duration such as "90s" or "1h30m", got a number`,
				"retries: want a whole number, got true or false", "ratio: want a number, got a string", "insecure: want true or false, got a string", "secrets: want a list, got an object",
				"labels: want an object, got a list", "pointer: want an object, got a string", "upper: want a string, got a number", "pair: want 2 values, got 1",
				"numbers: want a map[int]string, got an object", "bytes: want base64, which this is not",
			},
		},
		{name: "a wrong type in a list", in: `{"secrets":[{"path":"a"},{"path":"b"},{"path":3}]}`, errs: []string{"secrets[2].path: want a string, got a number"}},
		{name: "a wrong type in a map", in: `{"labels":{"a b":1},"nested":{"x":{"region":[]}}}`, errs: []string{`labels["a b"]: want a string, got a number`, "nested.x.region: want a string, got a list"}},
		{
			name: "numbers that do not fit", in: `{"retries":128,"size":-1,"both":1.5,"ratio":1e999}`,
			errs: []string{"retries: the number is out of range", "size: the number is out of range", "both: want a whole number", "ratio: the number is out of range"},
		},
		{name: "no duration", in: `{"timeout":"5 minutes"}`, errs: []string{`timeout: want a duration such as "90s" or "1h30m", which this is not`}},
		{
			name: "null", in: `{"url":null,"secrets":null,"labels":null,"both":null,"secrets":[null]}`,
			errs: []string{"secrets: is given twice", "url: want a string, got null: give a value or leave the field out", "secrets: want a list, got null", "labels: want an object, got null", "both: want a whole number, got null", "secrets[0]: want an object, got null"},
		},
		{name: "duplicates, also where nobody looks", in: `{"url":"a","url":"a","any":{"x":[{"y":1,"y":2}]}}`, errs: []string{"url: is given twice: keep one", "any.x[0].y: is given twice"}},
		{name: "what decodes itself and does not like it", in: `{"odd":"bad","upper":""}`, errs: []string{"odd: this is bad", "upper: want a word"}},
		{name: "no object", in: `[]`, errs: []string{": want an object, got a list"}},
		{name: "null instead of settings", in: `null`, errs: []string{": want an object, got null"}},
		{name: "no JSON", in: `{"url":}`, errs: []string{": settings are no JSON object"}},
		{name: "trailing data", in: `{} {}`, errs: []string{": settings are no JSON object"}},
		{name: "no UTF-8", in: "{\"url\":\"\xff\"}", errs: []string{": settings are not UTF-8"}},
		{name: "a very long name", in: `{"` + strings.Repeat("ä", 1000) + `":1}`, errs: []string{`["ää`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got settings
			err := decodeSettings([]byte(tt.in), &got)
			var errs []string
			for _, e := range problems(err) {
				var typed *Error
				if !errors.As(e, &typed) || typed.Kind != KindMisconfigured {
					t.Fatalf("%v is no error in the settings", e)
				}
				errs = append(errs, typed.Field+": "+typed.Err.Error())
			}
			if len(errs) != len(tt.errs) {
				t.Fatalf("got %q, want %q", errs, tt.errs)
			}
			for i := range errs {
				if !strings.HasPrefix(errs[i], tt.errs[i]) {
					t.Errorf("got %q, want %q", errs[i], tt.errs[i])
				}
			}
			if tt.errs == nil {
				if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(settings{}, odd{}), cmp.Comparer(func(a, b Secret) bool { return a == b })); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

func TestDecodeSettingsBoundsTheProblems(t *testing.T) {
	in := `{`
	for i := range 200 {
		in += fmt.Sprintf(`"x%d":1,`, i)
	}
	var got settings
	if n := len(problems(decodeSettings([]byte(strings.TrimSuffix(in, ",")+"}"), &got))); n != maxProblems+1 {
		t.Errorf("%d problems", n)
	}
}

func TestDecodeSettingsIntoOtherTypes(t *testing.T) {
	var pointer *settings
	if err := decodeSettings([]byte(`{"url":"u"}`), &pointer); err != nil || pointer == nil || pointer.URL != "u" {
		t.Errorf("a pointer: %v", err)
	}
	var anything map[string]any
	if err := decodeSettings([]byte(`{"a":1}`), &anything); err != nil || anything["a"] != 1.0 {
		t.Errorf("a map: %v, %v", anything, err)
	}
	var empty struct{}
	if err := decodeSettings([]byte(`{"a":1}`), &empty); err == nil || !strings.Contains(err.Error(), "there are no settings here") {
		t.Errorf("a backend without settings: %v", err)
	}
}

func TestSecretsIn(t *testing.T) {
	var v struct {
		A Secret
		B []map[string]*Secret
		C struct{ d Secret }
		D any
		E string
	}
	one := Secret("one")
	v.A, v.B, v.C.d, v.D, v.E = "zero", []map[string]*Secret{{"x": &one}}, "two", Secret("three"), "no"
	got := secretsIn(reflect.ValueOf(&v).Elem())
	slices.Sort(got)
	if !slices.Equal(got, []string{"one", "three", "two", "zero"}) {
		t.Errorf("got %q", got)
	}
}

// FuzzDecodeSettings: what is accepted means to encoding/json the same, and no error quotes a value.
func FuzzDecodeSettings(f *testing.F) {
	for _, seed := range []string{
		``, `{}`, `null`, `{"url":"u","both":1,"timeout":"1m","secrets":[{"path":"a"}],"labels":{"a":"b"},"pointer":{"region":"x"},"upper":"a","odd":1,"any":[{}],"bytes":"AQI=","pair":[1,2]}`,
		`{"url":1,"nested":{"a":{"region":null}}}`, `{"a":{"b":{"c":[[[[1]]]]}}}`, `{"numbers":{"1":"2"},"ratio":1e400}`, "{\"url\":\"\xff\"}", `{"any":{"x":1,"x":2}}`, `{"size":01}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var got, want settings
		if err := decodeSettings(in, &got); err != nil {
			_ = err.Error()
			return
		}
		if len(strings.TrimSpace(string(in))) == 0 {
			return
		}
		d := got.Timeout
		// encoding/json has no durations; everything else has to agree.
		var raw map[string]json.RawMessage
		if err := json.Unmarshal(in, &raw); err != nil {
			t.Fatalf("%q was accepted: %v", in, err)
		}
		delete(raw, "timeout")
		rest, err := json.Marshal(raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(rest, &want); err != nil {
			t.Fatalf("%q was accepted: %v", in, err)
		}
		want.Timeout = d
		got.Odd, want.Odd = odd{}, odd{} // raw text, which encoding again has made compact
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(settings{}, odd{}), cmp.Comparer(func(a, b Secret) bool { return a == b })); diff != "" {
			t.Errorf("%q: %s", in, diff)
		}
	})
}
