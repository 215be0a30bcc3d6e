package ecr

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// roleAnnotation is on a service account whose pods pull with a role of their own. The official provider reads the same.
const roleAnnotation = "eks.amazonaws.com/ecr-role-arn"

// defaultSessionName is the name of a session that nobody has named.
const defaultSessionName = "credential-broker"

// who is the identity that asks for a token.
type who struct {
	// pod is the token of the pod that pulls, if the pod's identity is used: it is exchanged for chain[0].
	pod   backends.Secret
	chain []Role
	// until is when the pod's token expires, by what it says; zero for the node.
	until time.Time
}

// key tells identities apart without holding a secret.
func (w who) key() string {
	chain := fmt.Sprintf("%q", w.chain) // maps are printed in order
	if w.pod == "" {
		return "node " + chain
	}
	sum := sha256.Sum256([]byte(w.pod))
	return "pod " + hex.EncodeToString(sum[:]) + " " + chain
}

// who finds out whose identity a request is made with.
func (b *Backend) who(req backends.Request, reg registry) (who, error) {
	w, err := b.whoever(req, reg)
	if err == nil && reg.public {
		for _, role := range w.chain {
			if partition := strings.Split(role.RoleARN, ":")[1]; partition != "aws" {
				return who{}, backends.Refused(noIdentity("%s is of partition %s, whose keys mean nothing to ECR Public", role.RoleARN, partition))
			}
		}
	}
	return w, err
}

func (b *Backend) whoever(req backends.Request, reg registry) (who, error) {
	if b.cfg.PodIdentity != settings.PodIdentityOff {
		role, from := req.Annotations[roleAnnotation], "the annotation "+roleAnnotation
		if _, ok := req.Annotations[roleAnnotation]; !ok {
			role, from = b.cfg.PodRoleARN, "podRoleARN"
		}
		switch {
		case req.Token != "" && role != "":
			if !validRoleARN(role) {
				return who{}, backends.Refused(fmt.Errorf("%s is %q, which is no role: want one such as arn:aws:iam::123456789012:role/name", from, remote.Cut(role)))
			}
			claims, _ := webidentity.ParseClaims(string(req.Token)) // whether it is a token at all is for STS to say
			return who{pod: req.Token, chain: []Role{{RoleARN: role, SessionName: podSessionName(claims)}}, until: claims.Expires}, nil
		case b.cfg.PodIdentity == settings.PodIdentityPrefer:
		case req.Token == "":
			return who{}, backends.Refused(noIdentity("podIdentity is Require, and the request carries no service account token: give the provider tokenAttributes, and the kubelet an entry for its audience"))
		default:
			return who{}, backends.Refused(noIdentity("podIdentity is Require, and the pod's service account names no role: annotate it with %s, or set podRoleARN", roleAnnotation))
		}
	}
	w := who{chain: b.cfg.chain(reg.account)}
	if len(w.chain) == 0 && !b.cfg.WebIdentity.IsZero() {
		return who{}, backends.Refused(noIdentity("no role for %s: webIdentity needs one to assume, and neither roleARN nor `roles` names one for this account", reg))
	}
	return w, nil
}

// String names the registry in messages.
func (r registry) String() string {
	if r.public {
		return "ECR Public"
	}
	return "account " + r.account + " in " + r.region
}

// maxSessionName is what STS takes of a session's name, in bytes.
const maxSessionName = 64

// podSessionName names a session after the pod's service account, "namespace.name", for CloudTrail. A namespace has no dot, so the first one divides the two. A name that is too long is
// cut, and told from others that begin like it by a hash.
func podSessionName(claims webidentity.Claims) string {
	name := claims.Namespace + "." + claims.ServiceAccount
	if claims.Namespace == "" || claims.ServiceAccount == "" {
		name = claims.Subject
	}
	return sessionName(name)
}

// sessionName makes a name that STS takes of any text.
func sessionName(name string) string {
	fit := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_+=,.@-", r) {
			return r
		}
		return '-'
	}, name)
	if fit == name && len(fit) >= 2 && len(fit) <= maxSessionName {
		return fit
	}
	if name == "" {
		return defaultSessionName
	}
	sum := sha256.Sum256([]byte(name))
	hash := hex.EncodeToString(sum[:])[:12]
	return fit[:min(len(fit), maxSessionName-1-len(hash))] + "-" + hash
}

// sessionSeconds is how long the session of an assumed role lasts: the least that STS gives, since it is used for one call. The registry's token outlives it.
const sessionSeconds = 900

// provider gives the credentials of an identity: those of the base, or of the last role in the chain.
func (s *session) provider(ctx context.Context, w who) (aws.CredentialsProvider, error) {
	chain := w.chain
	var base aws.CredentialsProvider
	switch {
	case w.pod != "":
		role, err := s.assumeWithToken(ctx, chain[0], w.pod, "the pod's service account token")
		if err != nil {
			return nil, err
		}
		base, chain = role, chain[1:]
	case s.web != nil:
		t, err := s.web.Token(ctx)
		if err != nil {
			return nil, err
		}
		role, err := s.assumeWithToken(ctx, chain[0], t.Value, "the identity token from "+s.web.String())
		if err != nil {
			return nil, err
		}
		base, chain = role, chain[1:]
	default:
		node, err := s.Identity(ctx)
		if err != nil {
			return nil, err
		}
		base = node
	}
	for _, role := range chain {
		assumed, err := s.assume(ctx, base, role)
		if err != nil {
			return nil, err
		}
		base = assumed
	}
	return base, nil
}

// assumeWithToken is AssumeRoleWithWebIdentity.
func (s *session) assumeWithToken(ctx context.Context, role Role, token backends.Secret, what string) (aws.CredentialsProvider, error) {
	defer backends.Span(ctx, "assume role")()
	ctx, call := s.Call(ctx, "sts", s.Config.Region)
	out, err := s.STS.AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn:          &role.RoleARN,
		RoleSessionName:  aws.String(nameOf(role)),
		WebIdentityToken: aws.String(string(token)),
		DurationSeconds:  aws.Int32(sessionSeconds),
	}, func(o *sts.Options) { o.Credentials, o.Retryer = aws.AnonymousCredentials{}, call })
	if err != nil {
		return nil, call.Explain(err, "assume "+role.RoleARN+" with "+what, assumeWithTokenAdvice(string(token)))
	}
	return credentialsOf(out.Credentials)
}

func (s *session) assume(ctx context.Context, as aws.CredentialsProvider, role Role) (aws.CredentialsProvider, error) {
	defer backends.Span(ctx, "assume role")()
	in := &sts.AssumeRoleInput{RoleArn: &role.RoleARN, RoleSessionName: aws.String(nameOf(role)), DurationSeconds: aws.Int32(sessionSeconds)}
	if role.ExternalID != "" {
		in.ExternalId = &role.ExternalID
	}
	for key, value := range role.SessionTags {
		in.Tags = append(in.Tags, types.Tag{Key: &key, Value: &value})
	}
	ctx, call := s.Call(ctx, "sts", s.Config.Region)
	out, err := s.STS.AssumeRole(ctx, in, func(o *sts.Options) { o.Credentials, o.Retryer = as, call })
	if err != nil {
		return nil, call.Explain(err, "assume "+role.RoleARN, assumeAdvice(role))
	}
	return credentialsOf(out.Credentials)
}

func nameOf(r Role) string {
	if r.SessionName == "" {
		return defaultSessionName
	}
	return r.SessionName
}

func credentialsOf(c *types.Credentials) (aws.CredentialsProvider, error) {
	if c == nil {
		return nil, backends.Unavailable(fmt.Errorf("STS answered without credentials"))
	}
	value := aws.Credentials{AccessKeyID: aws.ToString(c.AccessKeyId), SecretAccessKey: aws.ToString(c.SecretAccessKey), SessionToken: aws.ToString(c.SessionToken)}
	return aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return value, nil }), nil
}
