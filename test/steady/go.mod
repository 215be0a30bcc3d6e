module github.com/credential-broker/credential-broker/test/steady

go 1.26.0

require github.com/credential-broker/credential-broker v0.0.0

replace github.com/credential-broker/credential-broker => ../..
