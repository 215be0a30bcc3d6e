package gar

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/credential-broker/credential-broker/backends/internal/hosts"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// member is an identity as an allow policy spells it (https://cloud.google.com/iam/docs/principal-identifiers).
type member struct {
	// name has words in capitals where something has to be filled in.
	name string
	// note says how far the name is to be relied on, and what to fill in. Empty: it is certain.
	note string
	// argument is the name as a shell needs it; empty: the name, quoted if need be.
	argument string
}

func serviceAccount(email string) member { return member{name: "serviceAccount:" + remote.Cut(email)} }

// String is the member with its note.
func (m member) String() string {
	if m.note == "" {
		return m.name
	}
	return m.name + " (" + m.note + ")"
}

// shell is the name as an argument of a command to be pasted.
func (m member) shell() string {
	if m.argument != "" {
		return m.argument
	}
	return trust.Quote(m.name)
}

// member finds out who w is, without any right that a pull does not need.
func (g *google) member(ctx context.Context, w who) member {
	if w.account.email != "" {
		return serviceAccount(w.account.email)
	}
	from, err := g.source(ctx, w)
	if err != nil {
		return member{name: "MEMBER", note: "who asks is not known: " + err.Error()}
	}
	return from.member(ctx)
}

func (m *metadataServer) member(ctx context.Context) member {
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	email, err := m.get(ctx, "instance/service-accounts/"+m.account+"/email")
	switch email = strings.TrimSpace(email); {
	case err != nil:
		return member{name: "serviceAccount:ADDRESS", note: "the machine's own: its metadata server does not say who that is"}
	case !strings.Contains(email, "@"): // GKE's metadata server names the pool where the pod has no Google service account
		return member{name: "principal://iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/" + remote.Cut(email) + "/subject/ns/NAMESPACE/sa/NAME", note: "the Kubernetes service account that this runs as"}
	}
	return serviceAccount(email)
}

// accountIn is the service account in the URL of an API that gives its tokens; empty if there is none.
func accountIn(url string) string {
	_, email, _ := strings.Cut(strings.TrimSuffix(url, ":generateAccessToken"), "/serviceAccounts/")
	return email
}

func (f *file) member(context.Context) member {
	var says struct {
		ClientEmail      string `json:"client_email"`
		Account          string `json:"account"`
		Audience         string `json:"audience"`
		ImpersonationURL string `json:"service_account_impersonation_url"`
	}
	_ = json.Unmarshal(f.content, &says) // a token came of it
	switch email := accountIn(says.ImpersonationURL); {
	case email != "":
		return serviceAccount(email)
	case says.ClientEmail != "":
		return serviceAccount(says.ClientEmail)
	case says.Audience != "":
		return federated(says.Audience, "SUBJECT")
	case says.Account != "":
		return member{name: "user:" + remote.Cut(says.Account)}
	}
	return member{name: "user:ADDRESS", note: "whoever has logged in for " + f.path + ", which does not say who"}
}

// poolOf is the pool, as principals are spelt, of the provider whose audience this is.
func poolOf(audience string) string {
	pool, _, _ := strings.Cut(audience, "/providers/")
	return remote.Cut(pool)
}

// federated is a subject of a pool, by the audience of the provider that takes its token.
func federated(audience, subject string) member {
	m := member{name: "principal:" + poolOf(audience) + "/subject/" + remote.Cut(subject), note: "if the pool's provider maps google.subject to the token's sub"}
	if subject == "SUBJECT" {
		m.note = "SUBJECT is what the pool's provider maps the token to, as google.subject"
	}
	return m
}

func (f *federation) member(ctx context.Context) member {
	if f.aws {
		return member{name: "principalSet:" + poolOf(f.audience) + "/attribute.aws_role/arn:aws:sts::ACCOUNT:assumed-role/ROLE", note: "ACCOUNT and ROLE are those of the AWS identity, by the mapping that providers for AWS have at first"}
	}
	var claims webidentity.Claims
	token, err := f.subject.SubjectToken(ctx, nil)
	if err == nil {
		claims, err = webidentity.ParseClaims(token)
	}
	project, cluster := strings.CutPrefix(f.audience, "identitynamespace:")
	switch {
	case err != nil || claims.Subject == "":
		return federated(f.audience, "SUBJECT")
	case cluster && validName(claims.Namespace) && hosts.ConsistsOf(claims.ServiceAccount, "-.", 1, 253):
		project, _, _ = strings.Cut(project, ".svc.id.goog:")
		name := func(number string) string {
			return "principal://iam.googleapis.com/projects/" + number + "/locations/global/workloadIdentityPools/" + project + ".svc.id.goog/subject/ns/" + claims.Namespace + "/sa/" + claims.ServiceAccount
		}
		return member{name: name("NUMBER"), note: "NUMBER is that of project " + project, argument: `"` + name("$(gcloud projects describe "+project+" --format='value(projectNumber)')") + `"`}
	}
	return federated(f.audience, claims.Subject)
}

// mayPullOnly says of a machine whose scopes let it ask no API whether it has one of storage that lets it pull; scopes are those that it has.
func (m *metadataServer) mayPullOnly(ctx context.Context) (may bool, scopes string) {
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	all, err := m.get(ctx, "instance/service-accounts/"+m.account+"/scopes")
	if err != nil {
		return false, "unknown"
	}
	names := strings.Fields(all)
	for _, name := range names {
		may = may || strings.Contains(name, "/auth/devstorage.") && !strings.HasSuffix(name, ".write_only")
	}
	return may, remote.Cut(strings.Join(names, ", "))
}
