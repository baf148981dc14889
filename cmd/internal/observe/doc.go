// SPDX-License-Identifier: Apache-2.0

// Package observe is the HTTP listener on which a daemon shows its Prometheus
// metrics and, where that was asked for, Go's profiles.
package observe
