//go:build unix

package webidentity

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/credential-broker/credential-broker/test/cloud"
)

func TestSPIFFE(t *testing.T) {
	c := cloud.New(t)
	const node, other = "spiffe://example.org/node", "spiffe://example.org/other"
	api := c.WorkloadAPI("example.org", node, other)
	bare := c.WorkloadAPI("bare.example")
	dir, err := os.MkdirTemp("", "w")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	tests := []struct {
		name    string
		c       SPIFFE
		env     []string
		fault   *cloud.Fault
		subject string
		want    *failure
	}{
		{name: "the default identity", env: api.Environ(), subject: node},
		{name: "by its path", c: SPIFFE{Socket: api.Socket()}, env: bare.Environ(), subject: node},
		{name: "by its address", c: SPIFFE{Socket: "unix:" + api.Socket()}, subject: node},
		{name: "another identity", c: SPIFFE{ID: other}, env: api.Environ(), subject: other},
		{name: "one that is not issued", c: SPIFFE{ID: "spiffe://example.org/third"}, env: api.Environ(), want: refused("spiffe://example.org/third is not issued to this process", "register an entry")},
		{name: "none that is issued", env: bare.Environ(), want: refused("no identity is issued to this process", "uid")},
		{name: "no address", want: misconfigured("webIdentity.spiffe.socket", "nothing says where it is: set socket, or SPIFFE_ENDPOINT_SOCKET")},
		{name: "a wrong address", env: []string{"SPIFFE_ENDPOINT_SOCKET=agent.sock"}, want: misconfigured("webIdentity.spiffe.socket", "SPIFFE_ENDPOINT_SOCKET: want the address")},
		{name: "no socket", c: SPIFFE{Socket: filepath.Join(dir, "no.sock")}, want: unavailable("there is no such socket")},
		{name: "nobody at the socket", c: SPIFFE{Socket: stale}, want: unavailable("nobody listens there")},
		{name: "busy", env: api.Environ(), fault: &cloud.Fault{Code: "RESOURCE_EXHAUSTED", Body: fault}, want: unavailable("busy", "ResourceExhausted")},
		{name: "broken", env: api.Environ(), fault: &cloud.Fault{Code: "INTERNAL", Body: fault}, want: unavailable("Internal", "agent's log")},
		{name: "not ready", env: api.Environ(), fault: &cloud.Fault{Body: fault}, want: unavailable("Unavailable", "agent's log")},
		{name: "not asked well", env: api.Environ(), fault: &cloud.Fault{Code: "INVALID_ARGUMENT", Body: fault}, want: misconfigured("webIdentity.spiffe", `audience "sts.amazonaws.com"`)},
		{name: "without JWT-SVIDs", env: api.Environ(), fault: &cloud.Fault{Code: "UNIMPLEMENTED", Body: fault}, want: misconfigured("webIdentity.spiffe.socket", "no JWT-SVIDs")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c.ForgetRequests()
			c.Heal()
			if tt.fault != nil {
				tt.fault.Service = "spiffe"
				c.Fail(*tt.fault)
			}
			s := source(t, Config{SPIFFE: &tt.c}, testWorld(tt.env...))
			token, err := s.Token(t.Context())
			check(t, s, token, err, tt.want)
			if tt.want != nil {
				return
			}
			claims, err := ParseClaims(string(token.Value))
			if err != nil || claims.Subject != tt.subject || claims.Issuer != api.Issuer().URL() || !slices.Equal(claims.Audience, []string{aws}) {
				t.Errorf("%+v, %v", claims, err)
			}
			if r := c.Requests(); len(r) != 1 || r[0].Principal != tt.subject {
				t.Errorf("asked for more than one identity: %+v", r)
			}
		})
	}
}

// TestSPIFFEDenied is by the mode of a socket, which root may use all the same.
func TestSPIFFEDenied(t *testing.T) {
	s := &spiffe{SPIFFE: SPIFFE{Socket: "/a.sock"}, judge: judge{field: "webIdentity.spiffe"}}
	check(t, s, Token{}, s.refusal(t.Context(), 14 /* Unavailable */, os.ErrPermission), misconfigured("webIdentity.spiffe.socket", "may not use the socket"))
}
