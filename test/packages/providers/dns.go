//go:build linux

package main

import (
	"context"
	"net"
	"os"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// proxyName is known to DNS alone, and vaultName to /etc/hosts alone. The second is in the certificate of test/vaultserver.
const (
	proxyName = "proxy.example"
	vaultName = "vault"
)

// serveDNS has proxyName mean 127.0.0.1, and makes this the system's name server. stop ends it.
func serveDNS() (stop func(), err error) {
	conn, err := (&net.ListenConfig{}).ListenPacket(context.Background(), "udp", "127.0.0.1:53")
	if err != nil {
		return nil, err
	}
	go func() {
		buffer := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil { // it is closed
				return
			}
			if answer, err := answerDNS(buffer[:n]); err == nil {
				_, _ = conn.WriteTo(answer, from) // who gets none asks again
			}
		}
	}()
	return func() { _ = conn.Close() }, os.WriteFile("/etc/resolv.conf", []byte("nameserver 127.0.0.1\n"), 0o644)
}

func answerDNS(question []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		return nil, err
	}
	m.Response, m.RecursionAvailable, m.Additionals, m.RCode = true, true, nil, dnsmessage.RCodeNameError
	for _, q := range m.Questions {
		if !strings.EqualFold(q.Name.String(), proxyName+".") {
			continue
		}
		m.RCode = dnsmessage.RCodeSuccess
		if q.Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}})
		}
	}
	return m.Pack()
}
