package amazon

import "testing"

// TestThrottlingStaysWhereItIs: a region that is throttled makes no other wait.
func TestThrottlingStaysWhereItIs(t *testing.T) {
	all := NewSessions(Options{})
	ireland, oregon := all.retryer("ecr", "eu-west-1"), all.retryer("ecr", "us-west-2")
	if ireland == oregon || all.retryer("sts", "eu-west-1") == ireland || all.retryer("ecr", "eu-west-1") != ireland {
		t.Error("retryers are shared by what is throttled apart, or not by what is throttled together")
	}
}
