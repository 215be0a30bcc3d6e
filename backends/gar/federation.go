package gar

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"cloud.google.com/go/auth/credentials/externalaccount"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// federation exchanges another issuer's token for one of Google's, at the Security Token Service (https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token).
type federation struct {
	*google
	audience string
	subject  externalaccount.SubjectTokenProvider
	aws      bool // in place of subject
	of       string
}

// The types of what is exchanged.
const (
	typeJWT = "urn:ietf:params:oauth:token-type:jwt"
	typeAWS = "urn:ietf:params:aws:token-type:aws4_request"
)

// awsSource is what gcloud writes into an external_account file for AWS: keys of the environment, or else those of the instance, by IMDSv2.
var awsSource = externalaccount.CredentialSource{ //nolint:gosec // G101: addresses
	EnvironmentID:               "aws1",
	RegionURL:                   "http://169.254.169.254/latest/meta-data/placement/availability-zone",
	URL:                         "http://169.254.169.254/latest/meta-data/iam/security-credentials",
	RegionalCredVerificationURL: "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15",
	IMDSv2SessionTokenURL:       "http://169.254.169.254/latest/api/token",
}

func (f *federation) token(ctx context.Context, scope string) (token, error) {
	calls := f.calls()
	doing := fmt.Sprintf("exchange %s at Google's Security Token Service", f.of)
	domain := f.google.universe()
	options := externalaccount.Options{
		Audience: f.audience, SubjectTokenType: typeJWT, TokenURL: "https://sts." + domain + "/v1/token", Scopes: []string{scope},
		UniverseDomain: domain, Client: calls.client(), Logger: silent,
	}
	if f.aws {
		source := awsSource
		options.SubjectTokenType, options.CredentialSource = typeAWS, &source
	} else {
		options.SubjectTokenProvider = f.subject
	}
	made, err := externalaccount.NewCredentials(&options)
	if err != nil {
		return token{}, backends.InvalidConfig("workloadIdentityProvider", "%s: the settings do not suffice", doing)
	}
	t, err := made.Token(ctx)
	if own, ok := errors.AsType[*subjectError](err); ok { // the token itself was not to be had
		return token{}, own.err
	}
	if err != nil {
		return token{}, calls.explain(ctx, err, doing, func(last exchange) string { return f.advice(last) })
	}
	return granted(t, doing, f.now())
}

// universe is the one whose Security Token Service is asked.
func (f *federation) universe(context.Context) (string, error) { return f.google.universe(), nil }

func (f *federation) advice(last exchange) string {
	if f.aws && last.link {
		return "no AWS identity: off EC2, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION have to be there (named in inheritEnv); in a container on EC2, the instance's metadata hop limit has to be 2"
	}
	return exchangeAdvice(last.code, f.audience, "issuer, audience")
}

// exchangeAdvice is for the Security Token Service. Proof is by what of a provider what is exchanged is judged.
func exchangeAdvice(code, audience, proof string) string {
	switch code {
	case "invalid_grant":
		return fmt.Sprintf("the pool's provider does not take it: its %s, attribute mapping and condition are to be seen with `gcloud iam workload-identity-pools providers describe`; it was asked of %s", proof, audience)
	case "invalid_target":
		return fmt.Sprintf("there is no such pool or provider, or it is disabled: %s", audience)
	case "unauthorized_client":
		return "the provider's attribute condition refuses it"
	case "invalid_request":
		return fmt.Sprintf("Google does not take the request for %s", audience)
	}
	return ""
}

// subjectError is why there is nothing to exchange; it goes through Google's library as it is.
type subjectError struct{ err error }

func (e *subjectError) Error() string { return e.err.Error() }

// podToken is the token that came with the request.
type podToken backends.Secret

// SubjectToken implements externalaccount.SubjectTokenProvider.
func (t podToken) SubjectToken(context.Context, *externalaccount.RequestOptions) (string, error) {
	return string(t), nil
}

// webToken asks for a token of another issuer.
type webToken struct{ from webidentity.Source }

// SubjectToken implements externalaccount.SubjectTokenProvider.
func (t webToken) SubjectToken(ctx context.Context, _ *externalaccount.RequestOptions) (string, error) {
	got, err := t.from.Token(ctx)
	if err != nil {
		return "", &subjectError{err}
	}
	return string(got.Value), nil
}

// impersonatedLife is for how long a service account's token is asked for: the most that needs no policy of its own.
const impersonatedLife = time.Hour

// impersonate asks for a token of a service account with another identity's token (https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken).
func (g *google) impersonate(ctx context.Context, by token, as account) (token, error) {
	doing := "token of service account " + as.email
	calls := g.calls()
	ask := struct {
		Delegates []string `json:"delegates,omitempty"`
		Scope     []string `json:"scope"`
		Lifetime  string   `json:"lifetime"`
	}{Scope: []string{scopeRead}, Lifetime: fmt.Sprintf("%.0fs", impersonatedLife.Seconds())}
	for _, delegate := range as.delegates {
		ask.Delegates = append(ask.Delegates, "projects/-/serviceAccounts/"+delegate)
	}
	body, err := json.Marshal(ask)
	if err != nil {
		return token{}, err
	}
	url := "https://iamcredentials." + g.universe() + "/v1/projects/-/serviceAccounts/" + as.email + ":generateAccessToken"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return token{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+string(by.value))
	resp, err := calls.client().Do(req)
	if err != nil {
		return token{}, calls.explain(ctx, err, doing, nil)
	}
	defer resp.Body.Close()
	var answer struct {
		AccessToken string    `json:"accessToken"`
		ExpireTime  time.Time `json:"expireTime"`
	}
	if resp.StatusCode == http.StatusOK {
		err = json.NewDecoder(resp.Body).Decode(&answer)
		if err == nil && answer.AccessToken != "" && answer.ExpireTime.After(g.now()) {
			return token{backends.Secret(answer.AccessToken), answer.ExpireTime}, nil
		}
		err = errUndocumented
	}
	return token{}, calls.explain(ctx, err, doing, func(last exchange) string {
		if advice := apiAdvice(last.code); advice != "" {
			return advice
		}
		switch last.status {
		case http.StatusForbidden:
			return fmt.Sprintf("the identity has to have roles/iam.serviceAccountTokenCreator (a pod or another cloud's identity: roles/iam.workloadIdentityUser) on %s%s",
				first(as), map[bool]string{true: ", and each delegate on the next"}[len(as.delegates) > 0])
		case http.StatusNotFound:
			return "there is no such service account, or the identity may not know that there is"
		case http.StatusBadRequest:
			return "Google does not take the request: see whether the addresses of the service accounts are right"
		}
		return ""
	})
}

// apiAdvice is for the IAM Service Account Credentials API, where it is not who asks that is at fault.
func apiAdvice(code string) string {
	switch {
	case strings.HasSuffix(code, " ACCESS_TOKEN_SCOPE_INSUFFICIENT"):
		return "not a role is missing but an OAuth scope: give the machine, or whatever the credentials are made with, the scope cloud-platform"
	case strings.HasSuffix(code, " SERVICE_DISABLED"):
		return "enable the IAM Service Account Credentials API in the project of whoever asks: `gcloud services enable iamcredentials.googleapis.com --project=PROJECT`"
	}
	return ""
}

// first is the account that the identity itself has to have its role on.
func first(a account) string {
	if len(a.delegates) > 0 {
		return a.delegates[0]
	}
	return a.email
}
