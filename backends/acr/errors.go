package acr

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/proto/trust"
)

var errUndocumented = errors.New("the answer is none that Azure documents")

// maxSkew is how far a clock may be off before Entra refuses what it signs.
const maxSkew = 4 * time.Minute

// explain makes the error of calls that failed: what was being done, what came of it, and what to do, which advice may know better.
func (c *calls) explain(ctx context.Context, err error, doing string, advice func(exchange) string) error {
	c.mu.Lock()
	own, last := c.own, c.last
	c.mu.Unlock()
	if own != nil {
		return own
	}
	text := doing
	if last.host != "" {
		text += ": " + last.host
	}
	switch {
	case last.err != nil:
		text += ": " + last.err.Error()
	case last.status == 0 && ctx.Err() != nil, errors.Is(err, context.DeadlineExceeded):
		text += ": no answer in time"
	case last.status >= 300 && last.status < 400:
		text += fmt.Sprintf(": it points elsewhere (HTTP status %d), and nothing is sent there", last.status)
	case last.status == http.StatusOK, last.status == 0:
		text += ": " + errUndocumented.Error()
	case last.status == http.StatusTooManyRequests:
		text += ": it is busy (HTTP status 429)"
	case last.code != "":
		text += fmt.Sprintf(": %s (HTTP status %d)", last.code, last.status)
	default:
		text += fmt.Sprintf(": refused without a code that is known (HTTP status %d)", last.status)
	}
	remedy := ""
	if advice != nil {
		remedy = advice(last)
	}
	if remedy == "" {
		remedy = generalAdvice(last)
	}
	if skew := last.skew(c.now()); skew.Abs() > maxSkew && last.status >= 400 {
		off := fmt.Sprintf("this machine's clock is %s off Azure's: set it (timedatectl, chronyc)", skew.Abs().Round(time.Minute))
		if remedy == "" || strings.HasSuffix(last.code, " AADSTS700024") {
			remedy = off
		} else { // it may have to do with it, or not
			remedy += "; besides, " + off
		}
	}
	if remedy != "" {
		text += ": " + remedy
	}
	kind := backends.Unavailable
	if last.final() || last.untrusted() {
		kind = backends.Refused
	}
	return kind(errors.New(text))
}

// skew is how far this machine's clock is ahead of that of whoever answered; 0 if that is not known.
func (e exchange) skew(now time.Time) time.Duration {
	date, err := http.ParseTime(e.date)
	if err != nil {
		return 0
	}
	return now.Sub(date)
}

// final says that asking again soon is pointless.
func (e exchange) final() bool {
	busy := e.status == http.StatusTooManyRequests || e.status == http.StatusRequestTimeout || e.status >= 500 || strings.HasSuffix(e.code, " AADSTS90033")
	return e.err == nil && e.status >= 300 && !busy && !e.updating()
}

func (e exchange) untrusted() bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](e.err)
	return ok
}

func generalAdvice(last exchange) string {
	switch {
	case last.wait > 0:
		return fmt.Sprintf("throttled: it wants to be asked again in %s, and is not asked before; a longer cacheDuration, or an agent on the node, makes fewer calls", last.wait.Round(time.Second))
	case last.untrusted():
		return "if a proxy answers in Azure's place, the file of its CA belongs into SSL_CERT_FILE"
	case last.err != nil && !last.near:
		return "the way there has to be open: routes, a firewall's list, a private endpoint with its DNS zone, or HTTPS_PROXY"
	}
	return ""
}

// entraAdvice is for Entra's token endpoint. The numbers are those of https://learn.microsoft.com/entra/identity-platform/reference-error-codes.
func (c *calls) entraAdvice(last exchange, p *proof, cloud *cloudSettings) string {
	_, number, _ := strings.Cut(last.code, "AADSTS")
	switch {
	case last.wait > 0:
		return ""
	case c.binding != nil && last.untrusted():
		return "the cluster's endpoint shows another certificate: see identityBindings.sniName and caFile"
	case c.binding != nil && last.status == http.StatusForbidden:
		return "no identity binding of the cluster lets this service account use it: see `az aks identity-binding list`, and the roles of the cluster"
	}
	switch number {
	case "700016", "7000229":
		return fmt.Sprintf("the tenant has no such application, or no service principal of it: see clientID and tenantID, or `az ad sp create --id %s`", p.ClientID)
	case "90002", "900023":
		return fmt.Sprintf("there is no such tenant at %s: see tenantID, and cloud", cloud.authority)
	case "50049":
		return "Microsoft does not know that Entra ID: see authorityHost; in a cloud that is disconnected from Microsoft's, set disableInstanceDiscovery"
	case "7000215":
		return "the secret is wrong: its value is wanted, and not its ID"
	case "7000222":
		return fmt.Sprintf("the secret has expired: `az ad app credential reset --append --id %s`", p.ClientID)
	case "700027", "7000214":
		return fmt.Sprintf("the application does not know the certificate: `az ad app credential reset --append --id %s --cert @FILE`", p.ClientID)
	case "70021", "70025", "700211", "700212", "700213", "700223":
		return "the application or managed identity has no federated credential for the token: " + c.federatedCredential(p, cloud)
	case "700024":
		return "the assertion's time is not now: see whether this machine's clock is right, and whether the token in question is renewed"
	case "7000112":
		return "the application is disabled"
	case "500011", "1002012", "900144":
		return "nobody in the tenant knows what the token is for: see audience"
	case "53003", "530031":
		return "a Conditional Access policy of the tenant refuses it"
	}
	return ""
}

// federatedCredential is the command that has an application take the token that was shown.
func (c *calls) federatedCredential(p *proof, cloud *cloudSettings) string {
	issuer, subject, audience := "ISSUER", "SUBJECT", cloud.exchange
	c.mu.Lock()
	if shown := c.shown; shown.Issuer != "" {
		issuer, subject = remote.Cut(shown.Issuer), remote.Cut(shown.Subject)
		if len(shown.Audience) == 1 {
			audience = remote.Cut(shown.Audience[0])
		}
	}
	c.mu.Unlock()
	command := fmt.Sprintf("`az ad app federated-credential create --id %s --parameters %s`", p.ClientID,
		trust.Quote(fmt.Sprintf(`{"name":"NAME","issuer":%q,"subject":%q,"audiences":[%q]}`, issuer, subject, audience)))
	if p.pod != "" {
		command += ", or `az identity federated-credential create` where it is a managed identity's"
	}
	return command + "; all three are compared to the letter"
}
