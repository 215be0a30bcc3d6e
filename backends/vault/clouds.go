package vault

import "context"

// AWS is the login by an AWS identity.
type AWS struct{}

// GCP is the login by a Google identity.
type GCP struct{}

// Azure is the login by an Azure identity.
type Azure struct{}

func (*AWS) validate(string, *problems)                                   {}
func (*GCP) validate(string, *problems)                                   {}
func (*Azure) validate(string, *problems)                                 {}
func (*AWS) parameters(context.Context, string) (map[string]any, error)   { return nil, nil }
func (*GCP) parameters(context.Context, string) (map[string]any, error)   { return nil, nil }
func (*Azure) parameters(context.Context, string) (map[string]any, error) { return nil, nil }
