"""What S3 servers, and the way to them, can fail with: each failure as one error of ``holdfast.errors``.

A server's code counts first, then the status of HTTP. Its own words are not shown: they may hold anything.
"""

from __future__ import annotations

from botocore import exceptions as b
from botocore.exceptions import ClientError

from holdfast.errors import ObjectMissing, StorageDenied, StorageError, StorageFull, StorageUnavailable
from holdfast.storage.s3_client import CAME_AS, S3Address

_SECRET_IS_WRONG = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "MissingSecurityHeader"}
)
_TOKEN_IS_WRONG = frozenset({"ExpiredToken", "InvalidToken", "ExpiredTokenException", "TokenRefreshRequired"})
_PASSING = frozenset(
    {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "OperationAborted"}
    | {"RequestLimitExceeded", "BandwidthLimitExceeded", "TooManyRequests", "RequestThrottled"}
)
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_PASSING_ON_THE_WAY = (
    *(b.EndpointConnectionError, b.ConnectTimeoutError, b.ReadTimeoutError, b.ConnectionClosedError),
    *(b.ProxyConnectionError, b.ResponseStreamingError, b.IncompleteReadError),
)
_NO_CREDENTIALS = (
    *(b.CredentialRetrievalError, b.ProfileNotFound, b.ConfigParseError, b.ConfigNotFound, b.TokenRetrievalError),
    *(b.SSOError, b.LoginError, b.UnauthorizedSSOTokenError, b.InvalidConfigError, b.MissingDependencyException),
    *(b.MetadataRetrievalError, b.RefreshWithMFAUnsupportedError, b.UnknownCredentialError),
)


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def headers_of(response: dict[str, object]) -> dict[str, str]:
    metadata = response.get("ResponseMetadata", {})
    headers = metadata.get("HTTPHeaders", {}) if isinstance(metadata, dict) else {}
    return {str(k).lower(): str(v) for k, v in headers.items()}


def is_page(response: dict[str, object]) -> bool:
    """Whether an answer is a web page: S3 servers send none, nor did we store any. Some call an empty answer HTML."""
    headers = headers_of(response)
    return headers.get("content-type", "").startswith("text/html") and headers.get("content-length") != "0"


def no_s3(address: S3Address) -> StorageError:
    """What answered is no S3 server: a web page, or nonsense."""
    return StorageError(
        f"{address.server} does not speak S3: it answers with a web page or something else.",
        "Check the address: it must be the server's S3 endpoint, and not its console.",
    )


def no_bucket(address: S3Address) -> StorageError:
    return StorageError(
        f"There is no bucket {address.bucket} at {address.server}.", "Check its name, or make it first."
    )


def of_the_answer(error: ClientError, address: S3Address, thing: str) -> StorageError:
    """A server's answer that is an error. ``thing``: what was asked for, as a user may see it."""
    code, status, headers = code_of(error), status_of(error), headers_of(error.response)
    if error.operation_name.startswith(("AssumeRole", "GetRole", "GetSession", "GetFederation", "CreateToken")):
        return StorageDenied("The credentials of the AWS profile are refused.", "Check the profile and its role.")
    if code == "NoSuchBucket":
        return no_bucket(address)
    if "Quota" in code or "StorageFull" in code or status == 507:
        return StorageFull(f"{thing}: the storage is full.", "Raise the bucket's quota, or free some space there.")
    if error.response.get(CAME_AS) == 200 and not code.strip("0123456789"):
        return no_s3(address)
    if code in _PASSING or status in _PASSING_STATUS:
        return StorageUnavailable(f"{thing}: {address.server} cannot serve this now (HTTP {status}).", "Try again.")
    if not code.strip("0123456789") and is_page(error.response):
        return no_s3(address)
    if code in ("NoSuchKey", "404"):
        return ObjectMissing(f"{thing} is not there.")
    if denied := _refusal(code, status, address, thing):
        return denied
    if status in (301, 302, 307, 308) or code in ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
        return _elsewhere(error, headers, address)
    if status == 501 or code == "NotImplemented":
        return StorageError(f"{thing}: {address.server} does not know how to do this (HTTP 501).")
    plain = code if code.isalnum() and len(code) < 60 else ""
    return StorageError(f"{thing}: {address.server} refuses this ({plain or 'HTTP'} {status}).")


def _refusal(code: str, status: int, address: S3Address, thing: str) -> StorageDenied | None:
    """Why whoever we are may not."""
    if code in _SECRET_IS_WRONG or status == 401:
        return StorageDenied(
            f"{address.server} refuses the credentials.", "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    if code in _TOKEN_IS_WRONG:
        return StorageDenied(
            f"{address.server} refuses the session token: it has ended or is wrong.",
            "Log in again, and set AWS_SESSION_TOKEN to the new token.",
        )
    if code == "RequestTimeTooSkewed":
        return StorageDenied(
            f"The clock of this machine and the one of {address.server} differ too much.", "Set this machine's clock."
        )
    if code == "InvalidObjectState":
        return StorageDenied(
            f"{thing} lies in a storage class that cannot be read at once.", "Have the server restore it first."
        )
    if status == 403:
        return StorageDenied(
            f"{thing}: {address.server} does not allow this.",
            "Check that the credentials may list, read, write and delete in the bucket.",
        )
    return None


def _elsewhere(error: ClientError, headers: dict[str, str], address: S3Address) -> StorageError:
    detail = error.response.get("Error", {})
    region = str(headers.get("x-amz-bucket-region") or detail.get("Region") or "")
    if region.replace("-", "").isalnum():
        return StorageError(f"The bucket {address.bucket} is in the region {region}.", f"Set AWS_REGION={region}.")
    return StorageError(
        f"{address.server} sends us to another address for the bucket {address.bucket}.",
        "Give the bucket's own address, and set AWS_REGION to its region.",
    )


def of_the_way(error: Exception, address: S3Address) -> StorageError:
    """What never became an answer."""
    if isinstance(error, b.SSLError):
        return _no_trust(str(error), address)
    if isinstance(error, _PASSING_ON_THE_WAY):
        return StorageUnavailable(f"{address.server} cannot be reached.", "Check the address and the network.")
    if isinstance(error, b.NoCredentialsError):
        return StorageDenied(
            f"There are no credentials for {address.server}.",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
        )
    if isinstance(error, b.PartialCredentialsError):
        return StorageDenied(
            f"The credentials for {address.server} are only half there.",
            "Set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        )
    if isinstance(error, _NO_CREDENTIALS):
        return StorageDenied(
            "The AWS profile cannot be used.", "Check AWS_PROFILE, ~/.aws/config and ~/.aws/credentials, and log in."
        )
    if isinstance(error, b.ParamValidationError | b.InvalidRegionError | b.BaseEndpointResolverError):
        return StorageError(
            f"{address.server} knows no bucket like {address.bucket}.", "Check its name and AWS_REGION."
        )
    if isinstance(error, b.HTTPClientError):
        return StorageUnavailable(f"{address.server} broke off.", "Check the address and the network.")
    return no_s3(address)


def _no_trust(text: str, address: S3Address) -> StorageError:
    if "certificate" in text.lower() or "doesn't match" in text:
        reason = "is for another name" if "match" in text else "cannot be verified"
        return StorageDenied(
            f"The certificate of {address.server} {reason}.",
            "Check the address, or name the file of its certificate authority in HOLDFAST_CA_FILE.",
        )
    if "WRONG_VERSION_NUMBER" in text or "record layer" in text:
        return StorageError(f"{address.server} does not speak TLS.", "Is its address one with http:?")
    return StorageUnavailable(f"No TLS connection to {address.server} can be made.", "Check the address.")
