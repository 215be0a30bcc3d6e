package awsprogram

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/test/cloud"
)

const (
	account  = "111122223333"
	user     = "arn:aws:iam::" + account + ":user/node"
	audience = "api://AzureADTokenExchange"
	// planted is a text that no message may have.
	planted = "eyJ0-planted-secret"
)

// built is the program.
var built string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "awsprogram")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if built = filepath.Join(dir, program.Name); runtime.GOOS == "windows" {
		built += ".exe"
	}
	if out, err := exec.Command("go", "build", "-o", built, "../../../cmd/"+program.Name).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// setUp makes a cloud whose account issues tokens, and points this process's environment to it and to a user of the account.
func setUp(t *testing.T, may ...cloud.Statement) *cloud.Cloud {
	t.Helper()
	c := cloud.New(t)
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "") // so that it comes back
			_ = os.Unsetenv(name)
		}
	}
	c.EnableOutboundFederation(account)
	for _, variable := range append(c.Environ(), append(c.AddUser(user, may...).Environ(), "AWS_REGION=eu-west-1", "HOME="+t.TempDir())...) {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
	return c
}

var may = cloud.Statement{Actions: []string{"sts:GetWebIdentityToken"}}

// made is a source as a backend makes it, with the program at a path.
func made(t *testing.T, path string, c webidentity.AWS) webidentity.Source {
	t.Helper()
	cfg, from := webidentity.Config{AWS: &c}, webidentity.Sources{AWS: func(c webidentity.AWS, audience string) webidentity.Source {
		s, _ := New(c, audience).(*source)
		s.path = func() (string, error) { return path, nil }
		return s
	}}
	if err := cfg.Validate("webIdentity", from); err != nil {
		t.Fatal(err)
	}
	s, err := webidentity.New(cfg, audience, from)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestToken: the settings, the audience and the identity reach the program.
func TestToken(t *testing.T) {
	c := setUp(t, may)
	s := made(t, built, webidentity.AWS{Region: "eu-west-2"})
	token, err := s.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	claims, err := webidentity.ParseClaims(string(token.Value))
	if err != nil || claims.Subject != user || len(claims.Audience) != 1 || claims.Audience[0] != audience {
		t.Errorf("%+v, %v", claims, err)
	}
	if asked := c.Requests(); len(asked) != 1 || asked[0].Operation != "GetWebIdentityToken" || asked[0].Host != "sts.eu-west-2.amazonaws.com" || asked[0].Principal != user {
		t.Errorf("asked: %+v", asked)
	}
	if s.String() != "AWS's STS in eu-west-2" {
		t.Errorf("its name is %q", s)
	}
}

// TestSign: what the request is to be reaches the program, as does the identity, and what comes back is taken for that one's.
func TestSign(t *testing.T) {
	c := setUp(t)
	got, err := sign(t.Context(), built, CallerIdentity{Region: "eu-west-2", Header: map[string]string{"X-Server": "vault.example"}}, "auth.method aws")
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), got.Method, got.URL, strings.NewReader(got.Body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = got.Header
	answer, err := c.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if asked := c.Requests(); len(asked) != 1 || asked[0].Operation != "GetCallerIdentity" || asked[0].Host != "sts.eu-west-2.amazonaws.com" || asked[0].Principal != user || got.Header.Get("X-Server") != "vault.example" {
		t.Errorf("asked: %+v", asked)
	}
}

// TestNothingIsSigned: what the program has to say keeps its kind and its setting, and one that is of another release says nothing that can be sent.
func TestNothingIsSigned(t *testing.T) {
	for name, test := range map[string]struct {
		path, region string
		kind         backends.Kind
		field, want  string
	}{
		"a region that nothing says": {built, RegionAuto, backends.KindMisconfigured, ".region", "nothing says which region"},
		"no program":                 {"/nonexistent/aws-identity-token", "", backends.KindMisconfigured, "", "auth.method aws needs aws-identity-token beside the backend"},
		"a program that knows only tokens": {
			script(t, "cat >/dev/null; echo '{\"Token\": \""+planted+"\"}'"), "", backends.KindUnavailable, "", "it signed nothing: is it from the release that the backend is from?",
		},
	} {
		t.Run(name, func(t *testing.T) {
			setUp(t)
			t.Setenv("AWS_REGION", "")
			r, err := sign(t.Context(), test.path, CallerIdentity{Region: test.region}, "auth.method aws")
			failed(t, err, test.kind, test.field, test.want)
			if r.Header != nil {
				t.Error("there is a request with the error")
			}
		})
	}
}

// script is a program in the place of the one that belongs there.
func script(t *testing.T, text string) string {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("no modes, and no scripts")
	}
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// failed judges an error: its kind and field, what it says, and that it tells no secret.
func failed(t *testing.T, err error, kind backends.Kind, field, want string) {
	t.Helper()
	e, ok := errors.AsType[*backends.Error](err)
	if !ok || e.Kind != kind || e.Field != field || !strings.Contains(err.Error(), want) {
		t.Errorf("%#v\nwant kind %d, field %q, %q", err, kind, field, want)
	}
	if err != nil && (strings.Contains(err.Error(), planted) || strings.Contains(err.Error(), os.Getenv("AWS_SECRET_ACCESS_KEY"))) {
		t.Errorf("it tells a secret: %v", err)
	}
}

// TestRefusals: what the program has to say keeps its kind, and its setting.
func TestRefusals(t *testing.T) {
	for name, test := range map[string]struct {
		may         []cloud.Statement
		prepare     func(t *testing.T, c *cloud.Cloud)
		kind        backends.Kind
		field, want string
	}{
		"it may not": {nil, func(*testing.T, *cloud.Cloud) {}, backends.KindRefused, "", "identity token from AWS's STS: STS GetWebIdentityToken: AccessDenied"},
		"no region": {[]cloud.Statement{may}, func(t *testing.T, _ *cloud.Cloud) {
			t.Setenv("AWS_REGION", "")
		}, backends.KindMisconfigured, "webIdentity.aws.region", "nothing says which region to ask"},
		"AWS is broken": {[]cloud.Statement{may}, func(_ *testing.T, c *cloud.Cloud) {
			c.Fail(cloud.Fault{Service: "sts", Status: 500, Body: planted})
		}, backends.KindUnavailable, "", "status 500"},
	} {
		t.Run(name, func(t *testing.T) {
			c := setUp(t, test.may...)
			test.prepare(t, c)
			_, err := made(t, built, webidentity.AWS{}).Token(t.Context())
			failed(t, err, test.kind, test.field, test.want)
		})
	}
}

// TestItsTime: AWS that does not answer ends the question, and the program with it.
func TestItsTime(t *testing.T) {
	c := setUp(t, may)
	c.Fail(cloud.Fault{Service: "sts", Hang: true})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for len(c.Requests()) == 0 && t.Context().Err() == nil {
			<-tick.C
		}
	}()
	_, err := made(t, built, webidentity.AWS{}).Token(ctx)
	failed(t, err, backends.KindUnavailable, "", "context canceled")
}

// TestPrograms: what is installed in its place.
func TestPrograms(t *testing.T) {
	for name, test := range map[string]struct {
		path string
		kind backends.Kind
		want string
	}{
		"none":                              {"/nonexistent/aws-identity-token", backends.KindMisconfigured, "webIdentity.aws needs aws-identity-token beside the backend, and there is no /nonexistent/aws-identity-token: install it"},
		"one that prints what it read":      {script(t, "cat; exit 3"), backends.KindUnavailable, "exit status 3"},
		"one that prints no answer":         {script(t, "cat >/dev/null; echo "+planted), backends.KindUnavailable, "it printed no answer"},
		"one that gives no token":           {script(t, "cat >/dev/null; echo '{}'"), backends.KindUnavailable, "it is empty"},
		"one that sees keys in its own":     {script(t, "cat >/dev/null; if env | grep -q AWS_; then exit 4; fi; exit 5"), backends.KindUnavailable, "exit status 5"},
		"one that reads no keys":            {script(t, "if grep -q AWS_SECRET_ACCESS_KEY=; then exit 6; fi; exit 7"), backends.KindUnavailable, "exit status 6"},
		"one that is told by its arguments": {script(t, "cat >/dev/null; [ $# = 0 ] && exit 8; exit 9"), backends.KindUnavailable, "exit status 8"},
	} {
		t.Run(name, func(t *testing.T) {
			setUp(t, may)
			_, err := made(t, test.path, webidentity.AWS{}).Token(t.Context())
			field := ""
			if test.kind == backends.KindMisconfigured {
				field = "webIdentity.aws"
			}
			failed(t, err, test.kind, field, test.want)
		})
	}
}

func TestTheProgramIsAskedNothing(t *testing.T) {
	cmd := exec.Command(built)
	cmd.Stdin = strings.NewReader(`{"Environ": "` + planted + `"}`)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "want a question as JSON") || strings.Contains(string(out), planted) {
		t.Errorf("%v: %s", err, out)
	}
}

// TestWhereItIs: beside the running program.
func TestWhereItIs(t *testing.T) {
	s, _ := New(webidentity.AWS{}, audience).(*source)
	path, err := s.path()
	self, _ := os.Executable()
	self, _ = filepath.EvalSymlinks(self)
	if err != nil || filepath.Dir(path) != filepath.Dir(self) || filepath.Base(path) != filepath.Base(built) {
		t.Errorf("%s, %v", path, err)
	}
}
