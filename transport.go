package leasehold

import (
	"net"
	"net/http"
	"slices"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"

	"github.com/leasehold-go/leasehold/internal/connpool"
	"github.com/leasehold-go/leasehold/internal/leaserest"
)

// connect connects the client as config says.
func (s *sharedClient) connect(config *rest.Config) error {
	config = rest.CopyConfig(config)
	tc, err := config.TransportConfig()
	if err != nil {
		return err
	}
	tc.UserAgent = "" // the client sets it
	base := tc.Transport
	if base == nil {
		newTransport := func() (*http.Transport, error) { return newTransport(tc, s.interval) }
		if _, err := newTransport(); err != nil {
			return err
		}
		s.pool = connpool.New(newTransport, s.interval)
		base = s.pool
	}
	if tc.BearerTokenFile != "" {
		base = &tokenFile{path: tc.BearerTokenFile, next: base, token: tc.BearerToken}
		tc.BearerToken, tc.BearerTokenFile = "", ""
	}
	rt, err := transport.HTTPWrappersForConfig(tc, base)
	if err != nil {
		return err
	}
	client, err := leaserest.New(config, rt)
	if err != nil {
		return err
	}
	s.leases = func(namespace string) Leases { return client.Leases(namespace) }
	return nil
}

// newTransport returns what makes a connection as tc says. Files that tc names are read now: certificates
// are replaced now and then, also those of whom to trust.
func newTransport(tc *transport.Config, interval time.Duration) (*http.Transport, error) {
	now := *tc // TLSConfigFor puts into it what it has read
	tlsConfig, err := transport.TLSConfigFor(&now)
	if err != nil {
		return nil, err
	}
	proxy := http.ProxyFromEnvironment
	if tc.Proxy != nil {
		proxy = tc.Proxy
	}
	dial := (&net.Dialer{KeepAlive: interval}).DialContext
	if tc.DialHolder != nil {
		dial = tc.DialHolder.Dial
	}
	return &http.Transport{
		Proxy:              proxy,
		DialContext:        dial,
		TLSClientConfig:    tlsConfig,
		DisableCompression: true, // a Lease is smaller than what compressing it costs
		ForceAttemptHTTP2: tlsConfig == nil || len(tlsConfig.NextProtos) == 0 ||
			slices.Contains(tlsConfig.NextProtos, "h2"),
	}, nil
}
