package ecr

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

const (
	roleA = "arn:aws:iam::111111111111:role/a"
	roleB = "arn:aws:iam::222222222222:role/path/b"
	roleC = "arn:aws-cn:iam::333333333333:role/c"
)

var webFile = webidentity.Config{File: &webidentity.File{Path: "/run/token"}}

func TestValidate(t *testing.T) {
	tags := map[string]string{"team": "a"}
	for _, c := range []struct {
		name   string
		config Config
		fields []string // what is wrong; none: nothing
	}{
		{name: "empty"},
		{name: "all", config: Config{
			RoleARN: roleA, ExternalID: "x:1/2", SessionName: "node@a", SessionTags: tags, Via: []Role{{RoleARN: roleB}}, Roles: []AccountRole{{Accounts: []string{"012345678901"}, RoleARN: roleC}},
			WebIdentity: webFile, PodIdentity: settings.PodIdentityRequire, PodRoleARN: roleA, Public: PublicRequired, Scope: ScopeImage,
			RegistrySuffixes: []string{"amazonaws.example", "localhost.localstack.cloud:4566"}, Endpoint: "https://vpce.example", STSEndpoint: "http://127.0.0.1:4566", STSRegion: "eu-west-1",
			Proxy: "http://user:hunter2@proxy.example:3128",
		}},
		{name: "words", config: Config{PodIdentity: "prefer", Public: "no", Scope: "Registry"}, fields: []string{"podIdentity", "public", "scope"}},
		{name: "roles", config: Config{
			RoleARN: "arn:aws:iam::1:role/a", PodRoleARN: "role", Via: []Role{{RoleARN: "arn:aws:iam::111111111111:user/a"}, {RoleARN: roleA, SessionName: "a b"}},
			Roles: []AccountRole{{RoleARN: roleA}, {Accounts: []string{"1", "111111111111"}, RoleARN: roleB, ExternalID: "x"}, {Accounts: []string{"111111111111"}, RoleARN: roleB}},
		}, fields: []string{"roleARN", "via[0].roleARN", "via[1].sessionName", "roles[0].accounts", "roles[1].externalID", "roles[1].accounts[0]", "roles[2].accounts[0]", "podRoleARN"}},
		{name: "an external id without a role", config: Config{ExternalID: "xx"}, fields: []string{"roleARN"}},
		{name: "tags", config: Config{RoleARN: roleA, SessionTags: map[string]string{"": "x"}}, fields: []string{"sessionTags"}},
		{
			name: "places", config: Config{RegistrySuffixes: []string{"amazonaws", "*.example", "a.example:port"}, Endpoint: "vpce.example", STSEndpoint: "https://u:p@sts.example", STSRegion: "EU", Proxy: "proxy:hunter2"},
			fields: []string{"registrySuffixes[0]", "registrySuffixes[1]", "registrySuffixes[2]", "endpoint", "stsEndpoint", "stsRegion", "proxy"},
		},
		{name: "a web identity without a role", config: Config{WebIdentity: webFile}, fields: []string{"roleARN"}},
		{name: "a web identity of AWS's", config: Config{WebIdentity: webidentity.Config{AWS: &webidentity.AWS{}}, RoleARN: roleA}, fields: []string{"webIdentity.aws"}},
		{name: "a web identity's role", config: Config{WebIdentity: webFile, RoleARN: roleA, ExternalID: "xx", SessionTags: tags}, fields: []string{"externalID", "sessionTags"}},
		{name: "a web identity's role by account", config: Config{WebIdentity: webFile, Roles: []AccountRole{{Accounts: []string{"111111111111"}, RoleARN: roleA, ExternalID: "xx"}}}, fields: []string{"roles[0].externalID"}},
		{name: "the first of a web identity's roles", config: Config{WebIdentity: webFile, Via: []Role{{RoleARN: roleA, ExternalID: "xx"}}, RoleARN: roleB, ExternalID: "xx"}, fields: []string{"via[0].externalID"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.config = c.config.withDefaults()
			var fields []string
			err := c.config.validate()
			for _, problem := range problems(err) {
				fields = append(fields, problem.Field)
			}
			slices.Sort(fields)
			slices.Sort(c.fields)
			if diff := cmp.Diff(c.fields, fields); diff != "" {
				t.Errorf("fields (-want +got):\n%s\n%v", diff, err)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Error("the message quotes the proxy's password")
			}
		})
	}
}

// problems takes joined errors apart.
func problems(err error) []*backends.Error {
	var all []*backends.Error
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			all = append(all, problems(err)...)
		}
	} else if e, ok := errors.AsType[*backends.Error](err); ok {
		all = append(all, e)
	}
	return all
}

func TestWhoAsks(t *testing.T) {
	annotated := map[string]string{roleAnnotation: roleB}
	config := func(change func(*Config)) Config {
		c := Config{RoleARN: roleA, Roles: []AccountRole{{Accounts: []string{"999999999999"}, RoleARN: roleC}}}
		if change != nil {
			change(&c)
		}
		return c.withDefaults()
	}
	with := func(p settings.PodIdentity) func(*Config) { return func(c *Config) { c.PodIdentity = p } }
	for _, c := range []struct {
		name    string
		config  Config
		request backends.Request
		account string
		roles   []string
		pod     bool
		err     string
	}{
		{name: "the node", config: config(nil), roles: []string{roleA}},
		{name: "the node, without roles", config: config(func(c *Config) { *c = Config{} })},
		{name: "the node, by account", config: config(func(c *Config) { c.Via = []Role{{RoleARN: roleB}} }), account: "999999999999", roles: []string{roleB, roleC}},
		{name: "a pod with a role", config: config(nil), request: backends.Request{Token: "t", Annotations: annotated}, roles: []string{roleB}, pod: true},
		{name: "a pod with the default role", config: config(func(c *Config) { c.PodRoleARN = roleC }), request: backends.Request{Token: "t"}, roles: []string{roleC}, pod: true},
		{name: "a pod whose annotation is empty", config: config(func(c *Config) { c.PodRoleARN = roleC }), request: backends.Request{Token: "t", Annotations: map[string]string{roleAnnotation: ""}}, roles: []string{roleA}},
		{name: "a pod without a role", config: config(nil), request: backends.Request{Token: "t"}, roles: []string{roleA}},
		{name: "a pod that does not count", config: config(with(settings.PodIdentityOff)), request: backends.Request{Token: "t", Annotations: annotated}, roles: []string{roleA}},
		{name: "a role without a token", config: config(nil), request: backends.Request{Annotations: annotated}, roles: []string{roleA}},
		{name: "no token where one is required", config: config(with(settings.PodIdentityRequire)), request: backends.Request{Annotations: annotated}, err: "carries no service account token"},
		{name: "no role where one is required", config: config(with(settings.PodIdentityRequire)), request: backends.Request{Token: "t"}, err: "names no role"},
		{name: "no role that is one", config: config(nil), request: backends.Request{Token: "t", Annotations: map[string]string{roleAnnotation: "arn:aws:iam::1:user/x\nevil"}}, err: "is no role"},
		{name: "no role for this account", config: config(func(c *Config) { c.RoleARN, c.WebIdentity = "", webFile }), account: "111111111111", err: "no role for account 111111111111"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &Backend{cfg: c.config}
			got, err := b.who(c.request, registry{account: c.account})
			if c.err != "" {
				if e, ok := errors.AsType[*backends.Error](err); !ok || e.Kind != backends.KindRefused || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "\n") {
					t.Errorf("got %v, want a refusal with %q on one line", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var roles []string
			for _, r := range got.chain {
				roles = append(roles, r.RoleARN)
			}
			if diff := cmp.Diff(c.roles, roles); diff != "" || (got.pod != "") != c.pod {
				t.Errorf("as pod: %t; roles (-want +got):\n%s", got.pod != "", diff)
			}
		})
	}
}

// TestIdentitiesAreToldApart: what is kept under one key is given to whoever has the same.
func TestIdentitiesAreToldApart(t *testing.T) {
	keys := map[string]string{}
	for name, w := range map[string]who{
		"node":                 {},
		"node with role":       {chain: []Role{{RoleARN: roleA}}},
		"node with other role": {chain: []Role{{RoleARN: roleB}}},
		"node with external":   {chain: []Role{{RoleARN: roleA, ExternalID: "x"}}},
		"node with tag":        {chain: []Role{{RoleARN: roleA, SessionTags: map[string]string{"a": "b"}}}},
		"pod":                  {pod: "token one", chain: []Role{{RoleARN: roleA}}},
		"pod with other token": {pod: "token two", chain: []Role{{RoleARN: roleA}}},
		"pod with other role":  {pod: "token one", chain: []Role{{RoleARN: roleB}}},
	} {
		if other, ok := keys[w.key()]; ok {
			t.Errorf("%s and %s have one key", name, other)
		}
		keys[w.key()] = name
		if strings.Contains(w.key(), "token") {
			t.Errorf("the key of %s holds its token", name)
		}
	}
}
