package vault

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/backends/webidentity/awsprogram"
)

// AWS is the login by an AWS identity, for roles of the type iam (https://developer.hashicorp.com/vault/api-docs/auth/aws#login): that of the SDK's default chain, such as the instance's role, EKS Pod Identity, IRSA or keys.
// It signs a request for sts:GetCallerIdentity, for which it needs no permission, and Vault sends that to the STS that its own configuration names: what is signed has to be for the same.
type AWS struct {
	// Region is the one whose STS Vault asks (https://sts.REGION.amazonaws.com, or as the region's partition has it), or "auto" for the one that the SDK finds. Vault's sts_endpoint and sts_region have to be that
	// region's, or use_sts_region_from_client be set. Default: the global endpoint, https://sts.amazonaws.com, which a Vault asks that was told nothing. China, GovCloud and the like have none: there it has to be set.
	Region string `json:"region"`
	// STSEndpoint is the URL of an STS in the region that Vault asks instead, such as a VPC endpoint: what its sts_endpoint is, without a path.
	STSEndpoint string `json:"stsEndpoint"`
	// ServerID is Vault's iam_server_id_header_value, if it has one: it is signed too, so that no other server can use what was sent to this one. Default: nothing is signed for it.
	ServerID string `json:"serverID"`
}

// serverIDHeader is where Vault looks for it.
const serverIDHeader = "X-Vault-AWS-IAM-Server-ID"

func (a *AWS) validate(field string, p *problems) {
	if a == nil {
		return
	}
	if a.Region != "" && !webidentity.IsRegion(a.Region) { // "auto" has that form
		p.Add(field+".region", `want a region such as eu-west-1, or "auto", got %q`, a.Region)
	}
	if s := a.STSEndpoint; s != "" {
		u, err := url.Parse(s)
		switch {
		case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
			p.Add(field+".stsEndpoint", "want a URL such as https://sts.eu-west-1.amazonaws.com, with nothing behind the host")
		case a.Region == "":
			p.Add(field+".region", "want the region that stsEndpoint is in: it is part of what is signed")
		}
	}
	if strings.ContainsFunc(a.ServerID, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		p.Add(field+".serverID", "want printable ASCII without spaces, as in Vault's iam_server_id_header_value")
	}
}

// parameters has the request signed by the program beside this one, since AWS's SDK is nothing that each pull should start with.
func (a *AWS) parameters(ctx context.Context, _ string) (map[string]any, error) {
	var s AWS
	if a != nil {
		s = *a
	}
	identity := awsprogram.CallerIdentity{Region: s.Region, Endpoint: s.STSEndpoint}
	if s.ServerID != "" {
		identity.Header = map[string]string{serverIDHeader: s.ServerID}
	}
	signed, err := awsprogram.Sign(ctx, identity, "auth.method aws")
	if err != nil {
		return nil, awsError(err)
	}
	header, err := json.Marshal(signed.Header)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"iam_http_request_method": signed.Method,
		"iam_request_url":         base64.StdEncoding.EncodeToString([]byte(signed.URL)),
		"iam_request_body":        base64.StdEncoding.EncodeToString([]byte(signed.Body)),
		"iam_request_headers":     base64.StdEncoding.EncodeToString(header),
	}, nil
}

// awsError says what was being done, and puts what is said of the settings where they are.
func awsError(err error) error {
	const doing = "signing a request to AWS's STS for Vault: %w"
	e, ok := errors.AsType[*backends.Error](err)
	switch {
	case !ok:
		return backends.Unavailable(fmt.Errorf(doing, err))
	case e.Kind == backends.KindMisconfigured:
		return backends.InvalidConfig("auth.aws"+e.Field, doing, e.Err)
	case e.Kind == backends.KindRefused:
		return backends.Refused(fmt.Errorf(doing, e.Err))
	default:
		return backends.Unavailable(fmt.Errorf(doing, e.Err))
	}
}
