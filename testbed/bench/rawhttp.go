package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
)

// A rawClient sends the requests that leasehold sends, by net/http alone over a connection of its own: the floor of
// what a client of the API server costs.
type rawClient struct {
	http *http.Client
	base string // URL of the Leases of namespace default
}

func newRawClient(cfg *rest.Config) (*rawClient, error) {
	tls, err := rest.TLSConfigFor(cfg)
	if err != nil {
		return nil, err
	}
	return &rawClient{
		http: &http.Client{Transport: &http.Transport{TLSClientConfig: tls, ForceAttemptHTTP2: true}},
		base: cfg.Host + "/apis/coordination.k8s.io/v1/namespaces/" + metav1.NamespaceDefault + "/leases",
	}, nil
}

func (c *rawClient) close() { c.http.CloseIdleConnections() }

// do sends a request that is answered by a Lease.
func (c *rawClient) do(ctx context.Context, method, path, contentType string, body []byte) (*coordinationv1.Lease,
	error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", runtime.ContentTypeProtobuf)
	req.Header.Set("Content-Type", contentType)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s: %q", method, path, resp.Status, data)
	}
	var envelope runtime.Unknown
	lease := new(coordinationv1.Lease)
	data, _ = bytes.CutPrefix(data, []byte("k8s\x00"))
	return lease, errors.Join(envelope.Unmarshal(data), lease.Unmarshal(envelope.Raw))
}

// renew sends the merge patch that leasehold renews by, and returns the Lease's new version.
func (c *rawClient) renew(ctx context.Context, name, version string) (string, error) {
	now := metav1.NowMicro().UTC().Format(metav1.RFC3339Micro)
	body := fmt.Appendf(nil, `{"metadata":{"resourceVersion":%q},"spec":{"renewTime":%q}}`, version, now)
	lease, err := c.do(ctx, http.MethodPatch, "/"+name+"?fieldManager=leasehold", "application/merge-patch+json", body)
	if err != nil {
		return "", err
	}
	return lease.ResourceVersion, nil
}

// watch counts the bytes of a Lease's events until ctx ends.
func (c *rawClient) watch(ctx context.Context, name string, bytes *atomic.Int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet,
		c.base+"?watch=true&fieldSelector=metadata.name%3D"+name, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", runtime.ContentTypeProtobuf+";stream=watch")
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("watch: %s", resp.Status)
	}
	for buffer := make([]byte, 4<<10); ; {
		n, err := resp.Body.Read(buffer)
		bytes.Add(int64(n))
		if err != nil {
			return err
		}
	}
}

// A rawMember is a process that renews Leases that it holds already, at the rate at which leasehold does, or watches
// one.
type rawMember struct {
	task
	client   *rawClient
	renewals atomic.Int64
	renewing atomic.Int64 // Leases
	received atomic.Int64 // bytes of watches
	loops    sync.WaitGroup

	mu  sync.Mutex
	err error // the first; protected by mu
}

func (r *rawMember) start(ctx context.Context, cfg *rest.Config) (err error) {
	if r.client, err = newRawClient(cfg); err != nil {
		return err
	}
	if r.Work == workRawWatch {
		r.loops.Go(func() { r.fail(ctx, r.client.watch(ctx, r.Leases, &r.received)) })
		return nil
	}
	for i := range max(1, r.Count) {
		r.loops.Go(func() { r.fail(ctx, r.renew(ctx, r.name(i))) })
	}
	return nil
}

// fail notes why the process does not do what it should; the next census tells.
func (r *rawMember) fail(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = errors.Join(r.err, err)
}

func (r *rawMember) renew(ctx context.Context, name string) error {
	lease, err := r.client.do(ctx, http.MethodGet, "/"+name, "application/json", nil)
	if err != nil {
		return err
	}
	r.renewing.Add(1)
	interval := r.Duration / 5
	pause := time.NewTimer(rand.N(interval)) // at first, so that many do not renew together
	defer pause.Stop()
	for version := lease.ResourceVersion; ; {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return nil
		}
		if version, err = r.client.renew(ctx, name, version); err != nil {
			return err
		}
		r.renewals.Add(1)
		pause.Reset(interval - rand.N(interval/10))
	}
}

func (r *rawMember) census(bool) census {
	c := ownCost()
	c.Leading, c.Renewals = int(r.renewing.Load()), r.renewals.Load()
	if r.received.Load() > 0 {
		c.Following = 1
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		c.Failure = r.err.Error()
	}
	return c
}

func (r *rawMember) wait() {
	r.loops.Wait()
	r.client.close()
}
