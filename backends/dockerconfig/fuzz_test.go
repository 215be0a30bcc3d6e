package dockerconfig

import (
	"strings"
	"testing"
)

func FuzzFile(f *testing.F) {
	for _, seed := range []string{
		``, `{}`, `null`, `[]`, `{"auths":{"r.example":{"auth":"dTpw"}}}`, `{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"p"}}}`,
		`{"auths":{"r.example/team":{"auth":"%"}},"credHelpers":{"r.example":"x","docker.io":"y"},"credsStore":"z"}`, `{"r.example":{"auth":"dTpw"}}`,
		`{"auths":{"[::1]:5000":{"identitytoken":"t"},"http://[::1":{}}}`, "{\n\"auths\":{\n\"a\":1}}", `{"auths":null}`, `{"auths":{"":{}}}`,
	} {
		f.Add(seed, "r.example/team/app")
		f.Add(seed, "docker.io/library/nginx")
	}
	f.Fuzz(func(t *testing.T, data, image string) {
		file, err := parse([]byte(data))
		if err != nil {
			if len(err.Error()) > 200 {
				t.Errorf("a long error, which may quote the file: %v", err)
			}
			return
		}
		host, _, _ := strings.Cut(image, "/")
		_, _ = file.helper(host)
		for _, e := range file.entries() {
			if e.Path != "" && !strings.HasPrefix(e.Path, "/") {
				t.Errorf("%q has the path %q", e.name, e.Path)
			}
			_ = e.CoversHost(host)
			_ = keyFor(e, host, nil)
			username, password, ok, err := login(e.auth)
			if ok && username == "" && password == "" || ok && err != nil {
				t.Errorf("%q: %v %v", e.name, ok, err)
			}
		}
	})
}
