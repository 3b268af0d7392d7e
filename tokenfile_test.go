package leasehold

import (
	"os"
	"strings"
	"testing"
	"time"
)

// A token that is replaced, and dies at once, costs neither the session nor a line in the log.
func TestTokenFileReplaced(t *testing.T) {
	overNetwork(t, time.Millisecond, func(t *testing.T, s *apiServer) {
		file := t.TempDir() + "/token"
		replace := func(token string) {
			if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			s.token.Store(token)
		}
		replace("first")
		config := s.config()
		config.BearerTokenFile = file
		log := &failures{}
		for session := range Sessions(t.Context(), WithLease("x"), WithNamespace("default"), WithRESTConfig(config),
			log.option, inVirtualTime) {
			for _, token := range []string{"second", "third"} {
				time.Sleep(10 * time.Second)
				replace(token)
			}
			time.Sleep(time.Minute)
			if err := session.Err(); err != nil {
				t.Error(err)
			}
			break
		}
		if got := log.String(); got != "" {
			t.Error(got)
		}
	})
}

// A file without a token is an error that names it.
func TestTokenFileMissing(t *testing.T) {
	for _, content := range []string{"", "none"} {
		overNetwork(t, time.Millisecond, func(t *testing.T, s *apiServer) {
			file := t.TempDir() + "/token"
			if content == "" {
				os.WriteFile(file, nil, 0o600)
			}
			config := s.config()
			config.BearerTokenFile = file
			_, err := TryAcquire(t.Context(), WithLease("x"), WithNamespace("default"), WithRESTConfig(config),
				unlogged, inVirtualTime)
			if err == nil || !strings.Contains(err.Error(), "bearer token file") ||
				!strings.Contains(err.Error(), file) {
				t.Error(err)
			}
		})
	}
}
