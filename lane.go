package leasehold

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/transport"
)

// A lane is a candidate's own way to the API server: nothing else waits in it, no client-side rate
// limit slows it, and a connection that stopped answering is replaced.
type lane struct {
	leases coordinationv1client.LeasesGetter
	dialer *dialer // nil for a client or a transport that is the caller's
}

// newLane connects as config says, for a lease that is renewed every interval.
func newLane(config *rest.Config, interval time.Duration) (lane, error) {
	config = rest.CopyConfig(config)
	config.RateLimiter, config.QPS, config.Timeout = nil, -1, 0
	if config.UserAgent == "" {
		config.UserAgent = rest.DefaultKubernetesUserAgent()
	}
	tc, err := config.TransportConfig()
	if err != nil {
		return lane{}, err
	}
	l := lane{}
	base := tc.Transport
	if base == nil {
		l.dialer = newDialer(tc, interval)
		base, err = newTransport(tc, l.dialer, interval)
		if err != nil {
			return lane{}, err
		}
	}
	rt, err := transport.HTTPWrappersForConfig(tc, base)
	if err != nil {
		return lane{}, err
	}
	l.leases, err = coordinationv1client.NewForConfigAndClient(config, &http.Client{Transport: noRetry{rt}})
	return l, err
}

// reconnect closes the connections and ends the dials under way; the next request opens a new one.
func (l lane) reconnect() {
	if l.dialer != nil {
		l.dialer.hangUp()
	}
}

func newTransport(tc *transport.Config, d *dialer, interval time.Duration) (*http.Transport, error) {
	tlsConfig, err := transport.TLSConfigFor(tc)
	if err != nil {
		return nil, err
	}
	proxy := http.ProxyFromEnvironment
	if tc.Proxy != nil {
		proxy = tc.Proxy
	}
	ping := max(interval/2, 250*time.Millisecond) // a busy server takes that long at times
	return &http.Transport{
		Proxy:               proxy,
		DialContext:         d.dialContext,
		TLSClientConfig:     tlsConfig,
		TLSHandshakeTimeout: 2 * interval,
		DisableCompression:  true, // a Lease is smaller than what compressing it costs
		ForceAttemptHTTP2:   true,
		// A watch makes a dead connection look busy. Asking it for a sign of life this often
		// replaces it within one interval; the usual 30 s and 15 s would cost the lease.
		HTTP2: &http.HTTP2Config{SendPingTimeout: ping, PingTimeout: ping},
	}, nil
}

// A dialer opens connections and remembers them, to leave none behind.
type dialer struct {
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	timeout time.Duration // for one dial: http.Transport goes on dialing when the request has given up

	mu     sync.Mutex // protects following
	conns  map[net.Conn]struct{}
	ctx    context.Context // of the dials under way
	cancel context.CancelFunc
}

func newDialer(tc *transport.Config, interval time.Duration) *dialer {
	d := &dialer{timeout: 2 * interval, conns: map[net.Conn]struct{}{}}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.dial = (&net.Dialer{KeepAlive: interval}).DialContext
	if tc.DialHolder != nil {
		d.dial = tc.DialHolder.Dial
	}
	return d
}

func (d *dialer) dialContext(ctx context.Context, network, address string) (net.Conn, error) {
	d.mu.Lock()
	hungUp := d.ctx
	d.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	defer context.AfterFunc(hungUp, cancel)()
	conn, err := d.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if hungUp.Err() != nil {
		conn.Close()
		return nil, net.ErrClosed
	}
	c := &trackedConn{Conn: conn, dialer: d}
	d.conns[c] = struct{}{}
	return c, nil
}

func (d *dialer) hangUp() {
	d.mu.Lock()
	d.cancel()
	d.ctx, d.cancel = context.WithCancel(context.Background())
	conns := slices.Collect(maps.Keys(d.conns))
	d.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

// A trackedConn tells its dialer when it is closed.
type trackedConn struct {
	net.Conn
	dialer *dialer
}

func (c *trackedConn) Close() error {
	c.dialer.mu.Lock()
	delete(c.dialer.conns, c)
	c.dialer.mu.Unlock()
	return c.Conn.Close()
}

// kubeconfig is the configuration that kubectl would use here.
func kubeconfig() clientcmd.ClientConfig {
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		clientcmd.NewDefaultClientConfigLoadingRules(), nil)
}

// defaultConfig returns the in-cluster configuration or, outside a cluster, the kubeconfig's.
func defaultConfig() (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if !errors.Is(err, rest.ErrNotInCluster) {
		return config, err
	}
	config, err = kubeconfig().ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("not in a cluster, and no kubeconfig at $KUBECONFIG or ~/.kube/config: " +
			"use WithRESTConfig or WithClient to say which API server holds the Lease")
	}
	return config, err
}

const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// defaultNamespace returns the service account's namespace or, outside a cluster, that of the
// kubeconfig's context, else "default".
func defaultNamespace() (string, error) {
	if data, err := os.ReadFile(namespaceFile); err == nil {
		if ns := strings.TrimSpace(string(data)); ns != "" {
			return ns, nil
		}
	}
	ns, _, err := kubeconfig().Namespace()
	if err != nil && !clientcmd.IsEmptyConfig(err) {
		return "", fmt.Errorf("which namespace: %w", err)
	}
	if ns == "" {
		ns = "default"
	}
	return ns, nil
}
