package leasehold

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// tokenFileAge is for how long a token is used before its file is read again. Kubernetes replaces tokens long before
// they expire.
const tokenFileAge = time.Minute

// A tokenFile authenticates requests by the bearer token in a file. client-go does so too, but goes on for a minute
// with a token that the server refuses, which costs the lease where a token is replaced that dies at once.
type tokenFile struct {
	path string
	next http.RoundTripper

	mu    sync.Mutex // protects following
	token string
	read  time.Time
}

func (f *tokenFile) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Header.Get("Authorization") != "" {
		return f.next.RoundTrip(req)
	}
	began := time.Now()
	token, err := f.current(began.Add(-tokenFileAge))
	if err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	resp, err := f.next.RoundTrip(withToken(req, token))
	if err != nil || resp.StatusCode != http.StatusUnauthorized || req.Body != nil && req.GetBody == nil {
		return resp, err
	}
	fresh, err := f.current(began)
	if err != nil || fresh == token {
		return resp, nil
	}
	resp.Body.Close()
	again := withToken(req, fresh)
	if req.Body != nil {
		if again.Body, err = req.GetBody(); err != nil {
			return nil, err
		}
	}
	return f.next.RoundTrip(again)
}

func withToken(req *http.Request, token string) *http.Request {
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+token)
	return req
}

// current returns the token, as it was read from the file at since or later. A file that cannot be read leaves it.
func (f *tokenFile) current(since time.Time) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.token != "" && f.read.After(since) {
		return f.token, nil
	}
	data, err := os.ReadFile(f.path)
	token := strings.TrimSpace(string(data))
	switch {
	case token != "":
		f.token, f.read = token, time.Now()
	case f.token != "":
	case err == nil:
		return "", fmt.Errorf("bearer token file %s is empty", f.path)
	default:
		return "", fmt.Errorf("bearer token file: %w", err)
	}
	return f.token, nil
}
