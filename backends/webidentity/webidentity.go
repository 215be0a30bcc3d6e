// Package webidentity has the ways in which a workload or node proves who it is without a stored secret: each gives an identity token (an OIDC JWT) that a cloud
// exchanges for credentials of its own. It is shared by the cloud backends and knows none of them: what a token is exchanged for, and how long that is kept, is
// theirs. Nor does it verify signatures: whoever takes the token does.
package webidentity

import (
	"context"
	"time"

	"github.com/credential-broker/credential-broker/backends"
)

// Source is where identity tokens come from. Its methods are called from many goroutines at once.
type Source interface {
	// Token gets a token that is valid now. Nothing is kept: each call asks anew. Errors say what was asked and what to do, never what was answered; their kind is
	// Refused, Unavailable or that of InvalidConfig.
	Token(ctx context.Context) (Token, error)
	// String names the source for messages: "file /run/token", "Google's metadata server".
	String() string
}

// Token is an identity token.
type Token struct {
	Value backends.Secret
	// Expires is zero where the token does not tell.
	Expires time.Time
}

// Sources are the sources that a backend brings, since not every program is to carry what they need. It gives the same ones to Validate and to New.
type Sources struct {
	// AWS makes the source of the setting `aws`: awsidentity.New, with AWS's SDK, or awsprogram.New, which has another program ask. What becomes of its tokens, and where in the settings its errors point, is decided here. nil: the setting is
	// refused.
	AWS func(c AWS, audience string) Source
	// InsteadOfAWS is what to do then, for the message.
	InsteadOfAWS string
	// At is where the backend's settings have the Config, for errors that are found when a token is asked for. Default: "webIdentity".
	At string
}

// New makes the source that c names; c has passed Validate. It neither reads nor connects. An audience in c replaces defaultAudience.
func New(c Config, defaultAudience string, from Sources) (Source, error) {
	return newSource(c, defaultAudience, from, realWorld())
}
