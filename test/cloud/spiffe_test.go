//go:build unix

package cloud

import (
	"context"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestWorkloadAPI has go-spiffe's own client confirm what is served.
func TestWorkloadAPI(t *testing.T) {
	c := New(t)
	a := c.WorkloadAPI("example.org", "spiffe://example.org/node", "spiffe://example.org/other")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+a.Socket()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	svid, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a", ExtraAudiences: []string{"b"}, Subject: spiffeid.RequireFromString("spiffe://example.org/other")})
	if err != nil {
		t.Fatal(err)
	}
	if svid.ID.String() != "spiffe://example.org/other" {
		t.Errorf("a token of %s", svid.ID)
	}
	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), bundles, []string{"b"}); err != nil {
		t.Error(err)
	}
	a.SetIDs()
	if _, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("without an identity: %v", err)
	}
	var got []string
	for _, r := range c.Requests() {
		if r.Service != "spiffe" {
			continue
		}
		got = append(got, r.Operation+" "+r.Principal+" "+r.Code)
	}
	want := []string{"FetchJWTSVID spiffe://example.org/other ", "FetchJWTBundles  ", "FetchJWTSVID  PermissionDenied"}
	if len(got) != len(want) {
		t.Fatalf("%q, not %q", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%q, not %q", got[i], want[i])
		}
	}
}
