package acr

import (
	"context"
	"net/http"
	"os"
	"runtime"
	"sync"
	"time"

	azlog "github.com/Azure/azure-sdk-for-go/sdk/azcore/log"

	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

const isWindows = runtime.GOOS == "windows"

// azure is what all calls to Azure have in common.
type azure struct {
	cfg       *Config
	transport *http.Transport
	// link is the way to what is on this machine or its own link: metadata services, agents.
	link *http.Transport
	// All requests of the process hold to what hosts have said of when they want to be asked again, each counted with whom it counts the calls for.
	remote.Throttle

	mu sync.Mutex
	// webs are the sources of identity tokens, which keep their connections, by entry of the settings and audience.
	webs map[string]webidentity.Source

	now   func() time.Time
	sleep func(ctx context.Context, d time.Duration) bool // false: ctx ended before
}

func newAzure(c *Config) *azure {
	azlog.SetListener(nil) // which AZURE_SDK_GO_LOGGING would set, to write requests and answers to standard error
	for _, name := range regional {
		_ = os.Unsetenv(name) // never fails for a name without "="
	}
	transport := remote.Transport(string(c.Proxy))
	// A login asks each host twice, one after the other. What HTTP/2 does first, on both sides, is a fortieth of a pull's whole time (test/peers/cost), and would spare nothing.
	transport.ForceAttemptHTTP2 = false
	return &azure{cfg: c, transport: transport, link: remote.LinkTransport(), webs: map[string]webidentity.Source{}, now: time.Now, sleep: remote.Sleep}
}

// regional are variables by which the SDK goes to an Entra ID of the region, which is for Microsoft's own services; to find the region, it asks the metadata service by a client of its own, which
// knows neither bounds nor that no proxy has business there.
var regional = []string{"AZURE_REGIONAL_AUTHORITY_NAME", "MSAL_FORCE_REGION"}

const (
	// linkTimeout bounds a question to a metadata service, which may have to ask Entra first.
	linkTimeout = 5 * time.Second
	// managedTimeout bounds all questions for one token of a managed identity, so that off Azure there is time left to say so.
	managedTimeout = 8 * time.Second
)

// wait pauses; false: there would be too little time afterwards.
func (a *azure) wait(ctx context.Context, d time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < d+min(d, leastTime) {
		return false
	}
	return a.sleep(ctx, d)
}

// leastTime is what an answer takes, if all is well.
const leastTime = time.Second
