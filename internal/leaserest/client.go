// Package leaserest is a client of the Lease API for programs that need nothing else of Kubernetes: a typed client of
// client-go links the types of all API groups, which are 20 MB of a program.
package leaserest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion/queryparams"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

// A Client makes each request once, and logs nothing. It follows no redirects, which would send the program's
// credentials to another server.
type Client struct {
	transport http.RoundTripper
	base      *url.URL
	accept    []string                                     // header Accept
	userAgent []string                                     // header User-Agent
	warn      func(context.Context, utilnet.WarningHeader) // nil where nobody wants to hear of warnings
}

// New returns a client of the API server that config names. Requests go through next, which authenticates them.
func New(config *rest.Config, next http.RoundTripper) (*Client, error) {
	c := *config
	c.GroupVersion = &coordinationv1.SchemeGroupVersion
	c.APIPath = "/apis"
	base, path, err := rest.DefaultServerUrlFor(&c)
	if err != nil {
		return nil, err
	}
	base.Path = strings.TrimRight(base.Path, "/") + path
	client := &Client{
		transport: next,
		base:      base,
		accept:    []string{contentProtobuf + "," + contentJSON},
		userAgent: []string{cmp.Or(config.UserAgent, rest.DefaultKubernetesUserAgent())},
	}
	if wants := config.AcceptContentTypes + config.ContentType; wants != "" &&
		!strings.Contains(wants, contentProtobuf) {
		client.accept[0] = contentJSON
	}
	switch {
	case config.WarningHandlerWithContext != nil:
		client.warn = func(ctx context.Context, w utilnet.WarningHeader) {
			config.WarningHandlerWithContext.HandleWarningHeaderWithContext(ctx, w.Code, w.Agent, w.Text)
		}
	case config.WarningHandler != nil:
		client.warn = func(_ context.Context, w utilnet.WarningHeader) {
			config.WarningHandler.HandleWarningHeader(w.Code, w.Agent, w.Text)
		}
	}
	return client, nil
}

// Leases returns the Leases of a namespace, of all namespaces for List and Watch if it is empty.
func (c *Client) Leases(namespace string) *Leases {
	l := &Leases{client: c, url: *c.base}
	if namespace != "" {
		l.url.Path += "/namespaces/" + namespace
	}
	l.url.Path += "/leases"
	return l
}

// Leases are those of a namespace. The methods are as those of a typed client; the errors are API errors where the
// server answered with one, and tell how long it asked to wait (apierrors.SuggestsClientDelay).
type Leases struct {
	client  *Client
	url     url.URL      // of all of them
	watches atomic.Int32 // that are open
	patches atomic.Int32 // under way

	mu      sync.Mutex // protects following
	patched decoded    // by the last patch; kept from its answer to its event, or from its event to its answer
}

// Get reads a Lease.
func (l *Leases) Get(ctx context.Context, name string, opts metav1.GetOptions) (*coordinationv1.Lease, error) {
	return l.lease(ctx, http.MethodGet, name, &opts, "", nil)
}

// List reads the Leases that opts select.
func (l *Leases) List(ctx context.Context, opts metav1.ListOptions) (*coordinationv1.LeaseList, error) {
	content, data, err := l.do(ctx, http.MethodGet, "", &opts, "", nil)
	if err != nil {
		return nil, err
	}
	list := &coordinationv1.LeaseList{}
	return list, decode(content, data, list)
}

// Create creates a Lease.
func (l *Leases) Create(
	ctx context.Context, lease *coordinationv1.Lease, opts metav1.CreateOptions,
) (*coordinationv1.Lease, error) {
	typed := *lease
	typed.SetGroupVersionKind(coordinationv1.SchemeGroupVersion.WithKind("Lease"))
	body, err := json.Marshal(&typed)
	if err != nil {
		return nil, err
	}
	return l.lease(ctx, http.MethodPost, "", &opts, contentJSON, body)
}

// Patch changes a Lease.
func (l *Leases) Patch(
	ctx context.Context, name string, kind types.PatchType, patch []byte, opts metav1.PatchOptions,
	subresources ...string,
) (*coordinationv1.Lease, error) {
	if len(subresources) > 0 {
		return nil, fmt.Errorf("a Lease has no subresources, not %s", strings.Join(subresources, "/"))
	}
	l.patches.Add(1)
	defer l.patches.Add(-1)
	return l.lease(ctx, http.MethodPatch, name, &opts, string(kind), patch)
}

// Delete deletes a Lease.
func (l *Leases) Delete(ctx context.Context, name string, opts metav1.DeleteOptions) error {
	opts.SetGroupVersionKind(coordinationv1.SchemeGroupVersion.WithKind("DeleteOptions"))
	body, err := json.Marshal(&opts)
	if err != nil {
		return err
	}
	_, _, err = l.do(ctx, http.MethodDelete, name, &metav1.GetOptions{}, contentJSON, body)
	return err
}

// Watch watches the Leases that opts select. The watch ends with ctx. The object of an event may be the one that a call
// returns: nobody may change it.
func (l *Leases) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	opts.Watch = true
	ctx, cancel := context.WithCancel(ctx)
	resp, err := l.send(ctx, http.MethodGet, "", &opts, "", nil)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &watcher{leases: l, events: make(chan watch.Event), cancel: cancel}
	l.watches.Add(1)
	go w.run(ctx, resp)
	return w, nil
}

func (l *Leases) lease(
	ctx context.Context, method, name string, opts any, content string, body []byte,
) (*coordinationv1.Lease, error) {
	received, data, err := l.do(ctx, method, name, opts, content, body)
	if err != nil {
		return nil, err
	}
	return l.decode(received, data, method == http.MethodPatch && l.watches.Load() > 0)
}

// do makes a request, and returns the content type and the bytes of its answer.
func (l *Leases) do(
	ctx context.Context, method, name string, opts any, content string, body []byte,
) (received string, data []byte, err error) {
	resp, err := l.send(ctx, method, name, opts, content, body)
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	data, err = readAll(resp)
	return resp.Header.Get("Content-Type"), data, err
}

// A decoded is a Lease as it came and decoded.
type decoded struct {
	data  []byte
	lease *coordinationv1.Lease // nil if nothing is kept
}

// decode reads a Lease. The answer to a patch and its event have the same bytes, so only the first of the two is
// decoded, and kept if keep says that the second may come. They often come together: the second waits for the first.
func (l *Leases) decode(content string, data []byte, keep bool) (*coordinationv1.Lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lease := l.patched.lease; lease != nil && bytes.Equal(l.patched.data, data) {
		l.patched.lease = nil
		return lease, nil
	}
	lease := &coordinationv1.Lease{}
	if err := decode(content, data, lease); err != nil {
		return nil, err
	}
	if keep {
		l.patched.data, l.patched.lease = append(l.patched.data[:0], data...), lease
	}
	return lease, nil
}

// send makes a request. An answer that is no success is an error.
func (l *Leases) send(
	ctx context.Context, method, name string, opts any, content string, body []byte,
) (*http.Response, error) {
	query, err := encode(opts)
	if err != nil {
		return nil, err
	}
	u := l.url
	if name != "" {
		u.Path += "/" + name
	}
	u.RawQuery = query
	req, err := http.NewRequestWithContext(ctx, method, "/", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.URL, req.Host = &u, u.Host
	req.Header["Accept"] = l.client.accept
	req.Header["User-Agent"] = l.client.userAgent
	if content != "" {
		req.Header.Set("Content-Type", content)
	}
	resp, err := l.client.transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	l.client.warnOf(ctx, resp)
	if resp.StatusCode >= http.StatusOK && resp.StatusCode < http.StatusMultipleChoices {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, failure(resp, method, name)
}

// encode returns opts as a query. Those of a renewal are encoded without reflection.
func encode(opts any) (string, error) {
	if p, ok := opts.(*metav1.PatchOptions); ok && p.Force == nil && p.DryRun == nil && p.FieldValidation == "" {
		return "fieldManager=" + url.QueryEscape(p.FieldManager), nil
	}
	query, err := queryparams.Convert(opts)
	return query.Encode(), err
}

func (c *Client) warnOf(ctx context.Context, resp *http.Response) {
	headers := resp.Header["Warning"]
	if len(headers) == 0 || c.warn == nil {
		return
	}
	warnings, _ := utilnet.ParseWarningHeaders(headers)
	for _, w := range warnings {
		c.warn(ctx, w)
	}
}

// mostBytes bounds what is read of an answer.
const mostBytes = 16 << 20

func readAll(resp *http.Response) ([]byte, error) {
	if n := resp.ContentLength; n > 0 && n <= mostBytes {
		data := make([]byte, n)
		_, err := io.ReadFull(resp.Body, data)
		return data, err
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, mostBytes+1))
	if err == nil && len(data) > mostBytes {
		err = errors.New("the answer is too long")
	}
	return data, err
}

// failure returns the API error that resp is.
func failure(resp *http.Response, method, name string) error {
	seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	seconds = max(0, min(seconds, 3600))
	data, err := readAll(resp)
	if err != nil {
		return err
	}
	status := &metav1.Status{}
	if decode(resp.Header.Get("Content-Type"), data, status) == nil && status.Status == metav1.StatusFailure {
		if seconds > 0 {
			if status.Details == nil {
				status.Details = &metav1.StatusDetails{}
			}
			status.Details.RetryAfterSeconds = int32(seconds)
		}
		return &apierrors.StatusError{ErrStatus: *status}
	}
	text := strings.TrimSpace(string(data[:min(len(data), 1024)]))
	return apierrors.NewGenericServerResponse(resp.StatusCode, method, coordinationv1.Resource("leases"), name, text,
		seconds, true)
}
