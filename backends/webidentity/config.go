package webidentity

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/hosts"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// defaultSetting is where a backend's settings have the Config unless its Sources say otherwise.
const defaultSetting = "webIdentity"

// Config is the `webIdentity` setting of a cloud backend: exactly one of the sources is set.
type Config struct {
	// Audience is what the token is asked to be for, and has to be for. Each cloud backend has its default.
	Audience string `json:"audience"`

	File                 *File                 `json:"file"`
	GoogleMetadata       *GoogleMetadata       `json:"googleMetadata"`
	AzureManagedIdentity *AzureManagedIdentity `json:"azureManagedIdentity"`
	SPIFFE               *SPIFFE               `json:"spiffe"`
	Executable           *Executable           `json:"executable"`
	URL                  *URL                  `json:"url"`
	// AWS is taken by the backends that bring it: see Sources.
	AWS *AWS `json:"aws"`
}

// File is a file that has the token and nothing else, such as a projected service account token. It is read afresh each time.
type File struct {
	// Path is absolute.
	Path string `json:"path"`
}

// GoogleMetadata is the metadata server of Compute Engine or GKE.
type GoogleMetadata struct {
	// ServiceAccount is the service account's email address, one of those that the instance has. Default: "default".
	ServiceAccount string `json:"serviceAccount"`
	// Format is "standard" (the default), or "full", which tells of the instance too: its project, zone, name and number.
	Format GoogleFormat `json:"format"`
	// Endpoint is the server's URL. Default: http:// and the environment's GCE_METADATA_HOST, else http://169.254.169.254.
	Endpoint string `json:"endpoint"`
}

// GoogleFormat is how much a token of Google's metadata server tells (https://cloud.google.com/compute/docs/instances/verifying-instance-identity#request_signature).
type GoogleFormat string

// The formats.
const (
	GoogleStandard GoogleFormat = "standard"
	GoogleFull     GoogleFormat = "full"
)

// AzureManagedIdentity is the Azure Instance Metadata Service. Which identity, where the machine has several, is said by one of the ids; without any it is the
// system-assigned one, or the only one. The audience is the resource that is asked for: the application ID URI of an app registration.
type AzureManagedIdentity struct {
	ClientID   string `json:"clientID"`
	ObjectID   string `json:"objectID"`
	ResourceID string `json:"resourceID"`
	// Endpoint is the service's URL. Default: the environment's AZURE_POD_IDENTITY_AUTHORITY_HOST, as the Azure SDKs take it, else http://169.254.169.254.
	Endpoint string `json:"endpoint"`
}

// SPIFFE is a SPIFFE Workload API, such as a SPIRE agent's, which gives a JWT-SVID.
type SPIFFE struct {
	// Socket is the API's address: an absolute path, unix:///path or tcp://address:port (SPIFFE Workload Endpoint, section 4). Default: SPIFFE_ENDPOINT_SOCKET.
	Socket string `json:"socket"`
	// ID is the SPIFFE ID to ask for, where this process has several. Default: the first one that is issued.
	ID string `json:"id"`
}

// Executable is a program that prints the token, or JSON that has it.
type Executable struct {
	// Command is the program's absolute path. It and the directories above it may be writable by nobody but root and the broker's user.
	Command string `json:"command"`
	// Args are its arguments. Never a secret: everybody on the machine can read them.
	Args []string `json:"args"`
	// Env is its whole environment.
	Env map[string]backends.Secret `json:"env"`
	// SHA256 are the digests, in hexadecimal, of the files that may be run; none: any.
	SHA256 []string `json:"sha256"`
	// Timeout is how long it may run. Default: 10s.
	Timeout time.Duration `json:"timeout"`
	// TokenField is where in the JSON that it prints the token is: "id_token", or "data.token" for a field within a field. Empty: it prints the token alone.
	TokenField string `json:"tokenField"`
}

// URL is a web address whose answer to GET is the token, or JSON that has it.
type URL struct {
	// URL is used as it is. It is https; or http where the host is a loopback or link-local address, whose traffic does not leave the machine (or, in a cloud, its
	// hypervisor). For anything else there is no way around TLS: what passes is a secret both ways.
	URL string `json:"url"`
	// Headers are sent with the request. Names that HTTP itself needs (Host and the like) are not for settings.
	Headers map[string]backends.Secret `json:"headers"`
	// CAFile has the certificates, in PEM, that the server's is to be verified with, in place of the system's.
	CAFile string `json:"caFile"`
	// TokenField is as for Executable.
	TokenField string `json:"tokenField"`
}

// AWS is an AWS identity as the SDK's default chain finds it (an instance's role, EKS Pod Identity, a web identity's file, keys), for which STS gives a token
// (https://docs.aws.amazon.com/STS/latest/APIReference/API_GetWebIdentityToken.html). The account must have enabled that.
type AWS struct {
	// Region is the one whose STS is asked; there is none for all regions. Default: AWS_REGION, that of the shared configuration, or the instance's.
	Region string `json:"region"`
	// SigningAlgorithm is "RS256" (the default) or "ES384", which not every cloud takes: Entra does not.
	SigningAlgorithm SigningAlgorithm `json:"signingAlgorithm"`
	// Duration is how long the token holds: 1m to 1h, in whole seconds. It is exchanged at once, and nothing needs it for longer. Default: 5m.
	Duration time.Duration `json:"duration"`
}

// SigningAlgorithm is by what AWS signs a token.
type SigningAlgorithm string

// The algorithms.
const (
	RS256 SigningAlgorithm = "RS256"
	ES384 SigningAlgorithm = "ES384"
)

// String names the source for messages.
func (a AWS) String() string {
	if a.Region == "" {
		return "AWS's STS"
	}
	return "AWS's STS in " + a.Region
}

func (a AWS) withDefaults() AWS {
	a.SigningAlgorithm = cmp.Or(a.SigningAlgorithm, RS256)
	a.Duration = cmp.Or(a.Duration, 5*time.Minute)
	return a
}

// IsZero says that nothing was set.
func (c Config) IsZero() bool { return c == Config{} }

// chosen are the names of the sources that are set.
func (c Config) chosen() []string {
	var names []string
	for _, s := range []struct {
		name string
		set  bool
	}{
		{"file", c.File != nil},
		{"googleMetadata", c.GoogleMetadata != nil},
		{"azureManagedIdentity", c.AzureManagedIdentity != nil},
		{"spiffe", c.SPIFFE != nil},
		{"executable", c.Executable != nil},
		{"url", c.URL != nil},
		{"aws", c.AWS != nil},
	} {
		if s.set {
			names = append(names, s.name)
		}
	}
	return names
}

// Validate reports every problem of the settings (joined, each as backends.InvalidConfig makes them), with the names of the fields below `field`. It looks at the
// file of an executable, and at nothing else.
func (c Config) Validate(field string, from Sources) error {
	var problems []error
	problem := func(name, format string, args ...any) {
		problems = append(problems, backends.InvalidConfig(field+name, format, args...))
	}
	switch chosen := c.chosen(); {
	case len(chosen) == 0:
		known := "file, googleMetadata, azureManagedIdentity, spiffe, executable and url"
		if from.AWS != nil {
			known = "aws, " + known
		}
		problem("", "names no source of tokens: set one of %s", known)
	case len(chosen) > 1:
		problem("", "has %d sources, %s: keep one", len(chosen), strings.Join(chosen, ", "))
	}
	if !printable(c.Audience) {
		problem(".audience", "want printable text without spaces")
	}
	if f := c.File; f != nil {
		switch {
		case f.Path == "":
			problem(".file.path", "want the absolute path of the file that has the token")
		case !filepath.IsAbs(f.Path):
			problem(".file.path", "want an absolute path, got %q", f.Path)
		}
	}
	if g := c.GoogleMetadata; g != nil {
		if strings.ContainsFunc(g.ServiceAccount, func(r rune) bool { return !alphanumeric(r) && !strings.ContainsRune("@._-", r) }) {
			problem(".googleMetadata.serviceAccount", `want "default" or a service account's email address, got %q`, g.ServiceAccount)
		}
		if known := []GoogleFormat{GoogleStandard, GoogleFull}; g.Format != "" && !slices.Contains(known, g.Format) {
			problem(".googleMetadata.format", "want one of %q, got %q", known, g.Format)
		}
		c.validateEndpoint(g.Endpoint, ".googleMetadata.endpoint", problem)
	}
	if a := c.AzureManagedIdentity; a != nil {
		ids := 0
		for _, id := range []struct{ name, value string }{{"clientID", a.ClientID}, {"objectID", a.ObjectID}, {"resourceID", a.ResourceID}} {
			if id.value != "" {
				ids++
			}
			if id.name != "resourceID" && id.value != "" && !hosts.IsUUID(id.value) {
				problem(".azureManagedIdentity."+id.name, "want a UUID such as 00000000-0000-0000-0000-000000000000, got %q", id.value)
			}
		}
		if r := a.ResourceID; r != "" && !strings.HasPrefix(strings.ToLower(r), "/subscriptions/") {
			problem(".azureManagedIdentity.resourceID", "want the identity's resource id, /subscriptions/…/userAssignedIdentities/name, got %q", r)
		}
		if ids > 1 {
			problem(".azureManagedIdentity", "names the identity by more than one of clientID, objectID and resourceID: keep one")
		}
		c.validateEndpoint(a.Endpoint, ".azureManagedIdentity.endpoint", problem)
	}
	if s := c.SPIFFE; s != nil {
		if s.Socket != "" {
			if _, err := parseSocket(s.Socket); err != nil {
				problem(".spiffe.socket", "%w", err)
			}
		}
		if s.ID != "" && !isSPIFFEID(s.ID) {
			problem(".spiffe.id", "want a SPIFFE ID such as spiffe://example.org/node, got %q", s.ID)
		}
	}
	if e := c.Executable; e != nil {
		e.validate(problem)
	}
	if u := c.URL; u != nil {
		u.validate(problem)
	}
	switch {
	case c.AWS == nil:
	case from.AWS == nil:
		problem(".aws", "this backend does not take it: %s", from.InsteadOfAWS)
	default:
		c.AWS.validate(problem)
		if len(c.Audience) > maxAudience {
			problem(".audience", "AWS takes at most %d characters", maxAudience)
		}
	}
	return errors.Join(problems...)
}

type reporter = func(name, format string, args ...any)

// validateEndpoint judges the address of a metadata service, which is at hand wherever it is and speaks plain HTTP.
func (Config) validateEndpoint(s, field string, problem reporter) {
	if s == "" {
		return
	}
	if u, err := url.Parse(s); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		problem(field, "want a URL such as http://169.254.169.254, without user, password or query")
	}
}

func (e *Executable) validate(problem reporter) {
	switch {
	case e.Command == "":
		problem(".executable.command", "want the absolute path of a program that prints a token")
	case !filepath.IsAbs(e.Command):
		problem(".executable.command", "want an absolute path, got %q", e.Command)
	default:
		// The digest is left to the asking, since it costs reading the file.
		if err := trust.Executable(e.Command, nil); err != nil {
			problem(".executable.command", "%w", err)
		}
	}
	for i, arg := range e.Args {
		if strings.IndexByte(arg, 0) >= 0 {
			problem(fmt.Sprintf(".executable.args[%d]", i), "has a zero byte, which no program can be given")
		}
	}
	for name, value := range e.Env {
		switch {
		case name == "" || strings.ContainsAny(name, "=\x00"):
			problem(".executable.env", "%q is no name of an environment variable", name)
		case strings.IndexByte(string(value), 0) >= 0:
			problem(".executable.env."+name, "has a zero byte, which no program can be given")
		}
	}
	for i, digest := range e.SHA256 {
		if raw, err := hex.DecodeString(digest); err != nil || len(raw) != 32 {
			problem(fmt.Sprintf(".executable.sha256[%d]", i), "want a SHA-256 digest: 64 hexadecimal digits, as sha256sum prints them")
		}
	}
	if e.Timeout < 0 {
		problem(".executable.timeout", "want a duration such as 10s")
	}
	validateTokenField(e.TokenField, ".executable.tokenField", problem)
}

func (u *URL) validate(problem reporter) {
	parsed, err := url.Parse(u.URL)
	switch {
	case err != nil || parsed.Host == "" || parsed.Scheme != "https" && parsed.Scheme != "http":
		problem(".url.url", "want a URL such as https://issuer.example/token") // not quoted: it may have a secret in it
	case parsed.User != nil:
		problem(".url.url", "has a user or password: put an Authorization header into headers")
	case parsed.Fragment != "":
		problem(".url.url", "has a fragment (#…), which is never sent: remove it")
	case parsed.Scheme == "http" && !hosts.IsNear(parsed.Hostname()):
		problem(".url.url", "want https: plain http, which shows the token to everybody on the way, is for loopback and link-local addresses only")
	}
	for name, value := range u.Headers {
		field := ".url.headers." + name
		switch {
		case !isHeaderName(name):
			problem(".url.headers", "%q is no name of a header", name)
		case reservedHeaders[strings.ToLower(name)]:
			problem(field, "is not for settings: remove it")
		case strings.ContainsFunc(string(value), func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
			problem(field, "has a line break or another control character")
		}
	}
	switch {
	case u.CAFile != "" && !filepath.IsAbs(u.CAFile):
		problem(".url.caFile", "want an absolute path, got %q", u.CAFile)
	case u.CAFile != "" && err == nil && parsed.Scheme == "http":
		problem(".url.caFile", "is of no use with http: remove it, or use https")
	}
	validateTokenField(u.TokenField, ".url.tokenField", problem)
}

// maxAudience is what STS takes, in bytes at least.
const maxAudience = 1000

func (a AWS) validate(problem reporter) {
	if r := a.Region; r != "" && !IsRegion(r) {
		problem(".aws.region", "want a region such as eu-west-1, got %q", r)
	}
	if known := []SigningAlgorithm{RS256, ES384}; a.SigningAlgorithm != "" && !slices.Contains(known, a.SigningAlgorithm) {
		problem(".aws.signingAlgorithm", "want one of %q, got %q", known, a.SigningAlgorithm)
	}
	if d := a.Duration; d != 0 && (d < time.Minute || d > time.Hour || d%time.Second != 0) {
		problem(".aws.duration", "want 1m to 1h, in whole seconds, got %s", d)
	}
}

// IsRegion says whether s has the form of an AWS region's name. That of all regions, aws-global, is none.
func IsRegion(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' }) && !strings.HasSuffix(s, "-global")
}

func validateTokenField(path, field string, problem reporter) {
	if path == "" {
		return
	}
	for name := range strings.SplitSeq(path, ".") {
		if name == "" {
			problem(field, `want the name of a field, such as "token" or, for one within another, "data.token"; got %q`, path)
			return
		}
	}
}

// reservedHeaders are those that HTTP itself, and what this package promises (no compression, so that sizes are what they seem), depend on.
var reservedHeaders = map[string]bool{
	"host": true, "content-length": true, "transfer-encoding": true, "connection": true, "upgrade": true, "te": true, "trailer": true, "keep-alive": true, "accept-encoding": true,
	"proxy-authorization": true,
}

// isHeaderName: a token of RFC 9110, section 5.6.2.
func isHeaderName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !alphanumeric(r) && !strings.ContainsRune("!#$%&'*+-.^_`|~", r) })
}

// socket is where a Workload API listens.
type socket struct{ network, address string }

func (s socket) String() string {
	if s.network == "unix" {
		return s.address
	}
	return "tcp://" + s.address
}

// parseSocket reads an address as the SPIFFE Workload Endpoint specification has it, or a path.
func parseSocket(s string) (socket, error) {
	if filepath.IsAbs(s) {
		return socket{"unix", s}, nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return socket{}, errWorkloadSocket
	}
	switch u.Scheme {
	case "unix":
		path := u.Path
		if u.Opaque != "" {
			path = u.Opaque
		}
		if u.Host == "" && u.RawQuery == "" && u.Fragment == "" && u.User == nil && strings.HasPrefix(path, "/") {
			return socket{"unix", filepath.FromSlash(path)}, nil
		}
	case "tcp":
		_, port, err := net.SplitHostPort(u.Host)
		if ip, ipErr := netip.ParseAddr(u.Hostname()); err == nil && ipErr == nil && port != "" && u.User == nil && u.RawQuery == "" && u.Fragment == "" && strings.Trim(u.Path, "/") == "" {
			if !ip.Unmap().IsLoopback() && !ip.Unmap().IsLinkLocalUnicast() {
				return socket{}, errors.New("a Workload API tells workloads apart on its own machine only: want a unix socket, or a loopback address")
			}
			return socket{"tcp", u.Host}, nil
		}
	}
	return socket{}, errWorkloadSocket
}

var errWorkloadSocket = errors.New("want the address of a Workload API: an absolute path, unix:///path or tcp://127.0.0.1:port")

func alphanumeric(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// printable: what can stand in a query and a message.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\uFFFD' })
}
